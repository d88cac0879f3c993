r"""Prompts as artists write them: `text:weight:stop | text | ...`, into `Prompt`s and back.

    desert:50 | snow:25              two thirds desert, one third snow
    a castle | fog:-0.5              towards the castle, away from fog
    Star Wars: A New Hope:2          only numbers at the end of a piece are weights; other colons are text
    "the clock at 12:30"             in quotes everything is text; a weight may follow: "16:9":2
    the clock at 12\:30 \| noon      so is a colon or a bar after a backslash
    http://host:8080/a.png:0.5       a port is not a weight

The meaning of weight and stop is Katherine Crowson's (z+quantize notebook, 2021): the loss of a prompt is
|weight| times its distance, the squared angle between picture and text over two, with the weight's sign; it
stops pushing once that signed distance falls below `stop`.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

SAFE_STOP = -0.9
"""The stop of a negative weight that names none: push away until theta^2/2 > 0.9 (a cosine below 0.23, where
unrelated words lie with OpenAI's CLIP) and no further. Without it the picture is driven on towards the
opposite of the words, which shows nothing, and drowns the other prompts. `fog:-1:-inf` switches it off."""

_NUMBER = (
    r"[+\-−]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+\-]?\d+)?|[iI]nf(?:inity)?)"  # − is the typographic minus
)
_QUOTED = re.compile(
    rf'\s*"(?P<text>(?:\\.|[^"\\])*)"\s*(?P<numbers>(?::\s*{_NUMBER}\s*){{0,2}})(?=\||\Z)', re.DOTALL
)
_PLAIN = re.compile(r"(?:\\[:|]|[^|])*")
_HOST = re.compile(r"\s*\w+://(?:[^/@\s]*@)?(?:\[[^]/]*\]|[^/:\s]+)")  # http://me:secret@[::1]


class PromptError(ValueError):
    """A prompt that cannot be understood, with the number of the piece and what to write instead."""


@dataclass(frozen=True)
class Prompt:
    """One text the picture is drawn towards, or away from if `weight` is negative.

    weight: any finite number; only the ratios between prompts count (see `normalise`).
    stop: the signed distance, in units of theta^2/2 (0 to pi^2/2; negative for a negative weight), below
        which the prompt stops pushing; -inf for never.

    Raises PromptError if the text is blank, the weight not finite, or the stop neither finite nor -inf.
    """

    text: str
    weight: float = 1.0
    stop: float = -math.inf

    def __post_init__(self):
        if not isinstance(self.text, str) or not self.text.strip():
            raise PromptError("there are no words; write them before the colon, as in desert:50.")
        weight, stop = _as_float(self.weight), _as_float(self.stop)
        if not math.isfinite(weight):
            raise PromptError(f"the weight {self.weight} is not usable; take a number such as 1, 50 or -0.5.")
        if math.isnan(stop) or stop == math.inf:
            raise PromptError(f"the stop {self.stop} is not usable; take a number such as -0.9, or -inf.")
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "stop", stop)


def parse(source: str | Iterable[str | Prompt]) -> tuple[Prompt, ...]:
    """Read prompts, with the weights as typed.

    source: one text with pieces divided by `|`, or several such texts; a `Prompt` is taken as it is. Blank
        pieces are skipped. Missing: weight 1; stop -inf, or `SAFE_STOP` if the weight is negative.

    Raises PromptError if nothing is left, if all weights are zero, or naming the piece that is wrong.
    """
    if isinstance(source, (str, Prompt)):
        source = [source]
    prompts = []
    for item in source:
        if isinstance(item, Prompt):
            prompts.append(item)
            continue
        if not isinstance(item, str):
            raise PromptError(f"A prompt is a text such as desert:50, not {_short(repr(item))}.")
        for piece, text, numbers in _pieces(item):
            try:
                prompts.append(_prompt(text, numbers))
            except PromptError as error:
                raise PromptError(f"Prompt {len(prompts) + 1} ({_short(piece)}): {error}") from None
    if not prompts:
        raise PromptError("The prompt is empty; write a few words, for example: a desert at night.")
    _scale(prompts)
    return tuple(prompts)


def parse_optional(source: str) -> tuple[Prompt, ...]:
    """As `parse`, but an empty text, for which a setting was left empty, is no prompts instead of an error."""
    return parse(source) if source else ()


def normalise(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """Divide every weight by the sum of magnitudes, so that the shares |w| add up to 1; stops stay.

    `50 | 25` and `2 | 1` then mean the same, also beside other losses; in the plain sum of 2021 they did not.
    Raises PromptError if all weights are zero.
    """
    prompts = tuple(prompts)
    scale = _scale(prompts)
    total = sum(abs(p.weight / scale) for p in prompts)
    return tuple(replace(p, weight=p.weight / scale / total) for p in prompts)


def format_prompts(prompts: Iterable[Prompt]) -> str:
    """Write prompts so that `parse` gives back exactly these; quotes only where the text needs them."""
    return " | ".join(_format(p) for p in prompts)


def describe(prompts: Iterable[Prompt]) -> str:
    """Say what the prompts amount to: `desert 67 % · snow 33 %`, and `− fog 20 %` for one to shun."""
    return " · ".join(_share(p) for p in normalise(prompts))


def labels(prompts: Iterable[Prompt]) -> tuple[str, ...]:
    """A name for each prompt, by which its similarity goes: its text, numbered if it was there before."""
    found: list[str] = []
    for prompt in prompts:
        seen = sum(label == prompt.text or label.startswith(f"{prompt.text} #") for label in found)
        found.append(f"{prompt.text} #{seen + 1}" if seen else prompt.text)
    return tuple(found)


def default_stop(weight: float) -> float:
    """The stop of a prompt that names none: `SAFE_STOP` for one to shun, else -inf, which is never."""
    return SAFE_STOP if weight < 0 else -math.inf


def _pieces(source: str) -> Iterator[tuple[str, str, list[str]]]:
    """Each piece between bars that is not blank: as typed, its text, its zero to two trailing numbers."""
    at = 0
    while at <= len(source):
        if quoted := _QUOTED.match(source, at):
            numbers = [n.strip() for n in quoted["numbers"].split(":")[1:]]
            yield quoted[0].strip(), _unquote(quoted["text"]), numbers
        elif (plain := _PLAIN.match(source, at)) and plain[0].strip():
            yield plain[0].strip(), *_take_numbers(plain[0])
        at = (quoted or plain).end() + 1  # past the bar


def _take_numbers(piece: str) -> tuple[str, list[str]]:
    r"""Take at most two `:number`s off the end of an unquoted piece, each tried from the right."""
    numbers = []
    while len(numbers) < 2:
        rest, colon, number = piece.rpartition(":")
        number = number.strip()
        is_port = number.isdecimal() and _HOST.fullmatch(rest)
        if not colon or rest.endswith("\\") or is_port or not re.fullmatch(_NUMBER, number):
            break
        numbers.insert(0, number)
        piece = rest
    return re.sub(r"\\([:|])", r"\1", piece).strip(), numbers


def _prompt(text: str, numbers: list[str]) -> Prompt:
    weight, stop = ([float(n.replace("−", "-")) for n in numbers] + [None, None])[:2]
    weight = 1.0 if weight is None else weight
    return Prompt(text, weight, default_stop(weight) if stop is None else stop)


def _format(prompt: Prompt) -> str:
    numbers = []
    if prompt.stop != default_stop(prompt.weight):
        numbers = [_pretty(prompt.weight), _pretty(prompt.stop)]
    elif prompt.weight != 1:
        numbers = [_pretty(prompt.weight)]
    plain = ":".join([prompt.text, *numbers])
    # An opening quote always needs quoting: its partner might be found in a later piece.
    if not prompt.text.startswith('"') and list(_pieces(plain)) == [(plain, prompt.text, numbers)]:
        return plain
    return ":".join([_quote(prompt.text), *numbers])


def _quote(text: str) -> str:
    """Backslashes are doubled only where a quote follows, so that Windows paths stay readable."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda m: m[1] * 2 + (r"\"" if m[2] else ""), text) + '"'


def _unquote(text: str) -> str:
    return re.sub(r'(\\+)("|\Z)', lambda m: m[1][: len(m[1]) // 2] + m[2], text)


def _scale(prompts: Iterable[Prompt]) -> float:
    """The largest magnitude: weights are divided by it before summing, so that 1e308 twice is not inf."""
    scale = max((abs(p.weight) for p in prompts), default=0.0)
    if scale == 0:
        raise PromptError(
            "All weights are 0: nothing would be drawn; give at least one prompt another weight."
        )
    return scale


def _as_float(value: object) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _pretty(number: float) -> str:
    return repr(number).removesuffix(".0")


def _share(prompt: Prompt) -> str:
    percent = 100 * abs(prompt.weight)
    figure = f"{percent:.0f}" if percent >= 1 or percent == 0 else f"{percent:.1g}"
    return f"{'− ' if prompt.weight < 0 else ''}{_short(prompt.text)} {figure} %"


def _short(text: str, width: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
