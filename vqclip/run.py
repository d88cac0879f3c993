"""The loop: an optimisation is an iterator of frames.

    for frame in vqclip.generate("desert:50 | snow:25", steps=300, seed=7):
        frame.pil.save(f"{frame.step:04}.png")

`generate` builds a `Run` from plain words; a `Run` makes one step at each `next()` and is at rest in between, when
weights, learning rate or the latent itself may be changed. Whoever wants to record, show or stop just iterates.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import traceback
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from . import prompts as prompt_language
from .cutouts import AUGMENTS, Augment, Cutouts
from .images import load_image, to_pil
from .latent import STARTS, VQLatent
from .losses import LOSSES, PromptLoss
from .memory import give_back, is_exhaustion, keep_freed, room
from .optim import OPTIMIZERS
from .perceptor import Perceptor, Tokens, load_clip
from .precision import able, dtypes
from .prompts import Prompt
from .replay import Made, Replay, forward
from .settings import Settings, SettingsError
from .vqgan import VQGAN, load_vqgan

FEW = 8  # cutouts judged at once: with fewer a device has little to do, so before that the painter keeps less


class OutOfMemory(ValueError):
    """A step does not fit into memory, however few cutouts are judged at once: the run stops before it is taken."""


class NotFinite(ArithmeticError):
    """A loss or a latent became NaN or infinite: the run stops before the step is taken."""


@dataclass
class Frame:
    """One step of a run, as it was when its losses were measured; frame 0 is the start.

    Attributes:
        step: from 0 to the run's `steps`.
        codes: the grid of codes shown (h, w).
        losses: each loss by name, a scalar tensor.
        similarity: the cosine to each prompt, by its label; the mean over cutouts and perceptors.
        size: width and height that were asked for.
        decode: what makes a picture (3, H, W) of codes.
        measured: the picture, where it is at hand already.
    """

    step: int
    codes: Tensor
    losses: dict[str, Tensor]
    similarity: dict[str, float]
    size: tuple[int, int]
    decode: Callable[[Tensor], Tensor]
    measured: Tensor | None = None

    @cached_property
    def image(self) -> Tensor:
        """The picture (3, H, W) in [0, 1], on the run's device, as large as the latent makes it."""
        return self.decode(self.codes) if self.measured is None else self.measured

    @property
    def pil(self) -> Image.Image:
        """The picture for people, cropped to the size that was asked for."""
        return to_pil(crop_to(self.image, self.size))


def crop_to(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle `size` = (width, height) of an image (..., H, W)."""
    width, height = size
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


class Run:
    """An optimisation in progress: `next()` makes one step; between frames it is at rest.

    An object rather than a generator function, because a KeyboardInterrupt ends a generator for good, and this goes
    on at the next `next()`. It yields `steps + 1` frames, the start included. All of these may be changed at rest:

    Attributes:
        steps: after this frame the iteration ends; raise it and it goes on.
        step: the number of the next frame.
        latent: the parameters, see `latent.py`.
        losses: functions `loss(image) -> scalar` by name, each with its weight.
        optimizer: a torch optimiser over the latent's parameters.
        settings: what it was built from.
        steering: what `change` noted, as {step: {setting: value}}: each acts from that step on. It is the log of what
            was changed and, given to a new run, the script that does it again.
        replay: makes steps on a graphics card by replaying one, see `replay.py`; None makes each one anew.
    """

    def __init__(self, latent: VQLatent, losses: dict[str, tuple[float, Callable[[Tensor], Tensor]]],
                 optimizer: torch.optim.Optimizer, steps: int, settings: Settings,
                 steering: Mapping[int, Mapping[str, Any]] | None = None):  # fmt: skip
        self.latent, self.losses, self.optimizer = latent, losses, optimizer
        self.steps, self.settings, self.step = steps, settings, 0
        self.steering = {step: check_steerable(settings, entry) for step, entry in (steering or {}).items()}
        self.replay = Replay() if latent.z.is_cuda else None
        self._in_force: dict[str, Any] | None = {name: getattr(settings, name) for name in STEERABLE}
        self._before: dict[str, Any] | None = None  # the state before the last step
        self._unfinished: dict[str, Any] | None = None  # where to go back to, while not at rest

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Frame:
        self.settle()
        if self.step > self.steps:
            raise StopIteration
        while True:
            try:
                return advance([self])[0]
            except BaseException as error:  # an interrupt too: at rest means at rest, whatever happened
                self.settle()
                if not is_exhaustion(error):
                    raise
                self._spare(error)  # and again from the same state: the same step with the same draws

    def economise(self) -> str:
        """Need less memory from the next step on, by what costs least; pictures stay what they are, but for rounding.

        Returns:
            how, in words; "" where nothing is left to do.
        """
        keep_freed(False)
        judges = [judge for _, judge in self.judges()]
        at_once = max((judge.at_once for judge in judges), default=1)
        if at_once <= FEW and self.latent.spare():
            return "the painter keeps little and takes longer"
        if at_once == 1:
            return ""
        fewer = max(-(-at_once // 2), FEW if at_once > FEW else 1)
        for judge in judges:
            judge.chunk = min(judge.at_once, fewer)
        return f"{fewer} cutout{'s are' if fewer > 1 else ' is'} judged at once instead of {at_once}"

    def _spare(self, error: BaseException) -> None:
        """Economise after an error, and say so.

        Raises:
            OutOfMemory: there is nothing left to save.
        """
        how = self.economise()
        if not how:
            width, height = self.settings.size
            traceback.clear_frames(error.__traceback__)  # or what the step had would stay for as long as the error
            raise OutOfMemory(
                f"at step {self.step} there was not enough memory for size={width}x{height} even with one cutout at a "
                "time; what was made until here is kept. Choose a smaller size: `vqclip preflight` says what fits"
            ) from error
        warnings.warn(f"out of memory at step {self.step}, which is done again: from here {how}", stacklevel=3)

    def change(self, **changes: Any) -> None:
        """Change the settings of `STEERABLE` from the next step on, and note it in `steering`.

        What a script had in store for the same settings later on is dropped: whoever steers by hand has the say.

        Raises:
            SettingsError, PromptError: no such setting can change, or its value is out of range; nothing was changed.
        """
        changes = check_steerable(self.settings, changes)
        for step in [step for step in self.steering if step > self.step]:
            rest = {name: value for name, value in self.steering.pop(step).items() if name not in changes}
            if rest:
                self.steering[step] = rest
        self.steering[self.step] = {**self.steering.get(self.step, {}), **changes}

    @property
    def now(self) -> Settings:
        """The settings with which the next step will be made."""
        return self.settings.replace(**{**(self._in_force or {}), **self.steering.get(self.step, {})})

    def _steer(self, wanted: dict[str, Any]) -> None:
        """Bring the steerable settings into force, those that differ."""
        before, self._in_force = self._in_force, None  # an interrupt here leaves None: then all are set again
        for name, value in wanted.items():
            if before is None or before[name] != value:
                STEERABLE[name](self, value)
        self._in_force = wanted

    def settle(self) -> None:
        """Go back to before a step or a `restore` that was broken off, if there is one."""
        if self._unfinished is not None:
            self.restore(self._unfinished)

    def _begin(self) -> None:
        """Bring into force what this step is made with, and know the way back from it."""
        self._before = self._unfinished = self.state()
        if self.step in self.steering:
            self._steer({**self._in_force, **self.steering[self.step]})
        self.optimizer.zero_grad(set_to_none=True)

    def _finish(self, image: Tensor, losses: dict[str, Tensor]) -> Frame:
        """Take the step to which the gradient leads that `z` has by now."""
        losses = {name: loss.detach() for name, loss in losses.items()}
        judges = [loss for _, loss in self.judges()]
        asked = [torch.stack([*losses.values(), self.latent.z.grad.sum()])]
        if judges:
            asked.append(torch.stack([loss.similarity for loss in judges]).mean(0))
        measured = None if self.latent.ema else image.detach()[0]  # (3, H, W)
        codes = self.latent.codes(self.step)
        self.optimizer.step()
        self.latent.churn_(self.step)
        self.latent.project_()
        # At once, as each question to a graphics card waits for it, and not before all else was told to it.
        told = torch.cat(asked).tolist()
        self._check(dict(zip((*losses, "gradient"), told, strict=False)))
        labels = judges[0].labels if judges else ()
        similarity = dict(zip(labels, told[len(losses) + 1 :], strict=True))
        frame = Frame(self.step, codes, losses, similarity, self.settings.size, self.latent.decode, measured)
        self.step += 1
        if self.step > self.steps:  # others may have its memory
            give_back() if self.replay is None else self.replay.forget()
        self._unfinished = None
        return frame

    def _check(self, values: dict[str, float]) -> None:
        """Refuse a step by which something is not finite; whoever made it goes back to before it."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFinite(
                    f"at step {self.step} the {name} became {value} (seed {self.settings.seed}), so this step was not "
                    "taken; what was made until here is kept. A smaller lr (now "
                    f"{self.optimizer.param_groups[0]['lr']:g}) or precision=float32 usually helps"
                )

    def judges(self) -> list[tuple[str, PromptLoss]]:
        """The losses that hear prompts, by name."""
        return [(name, loss) for name, (_, loss) in self.losses.items() if isinstance(loss, PromptLoss)]

    def state(self) -> dict[str, Any]:
        """Copies of all that the next frames depend on, as plain data and tensors: what `restore` takes."""
        self.settle()
        return {
            "step": self.step,
            "in_force": dict(self._in_force),
            "latent": self.latent.state(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "weights": {name: weight for name, (weight, _) in self.losses.items()},
            "prompts": {name: judge.state() for name, judge in self.judges()},
            "cutouts": {name: judge.cutouts.state() for name, judge in self.judges()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken; from there the frames are the same bit for bit on a CPU.

        `steering` stays: what was changed after that step is done again when its step comes.
        Losses that the state has and this run has not are left out, those that only the run has stay as they are.
        """
        self._unfinished = state  # an interrupt comes when it likes: then it is done again before the next step
        self._steer(dict(state["in_force"]))
        self.latent.restore(state["latent"])
        optimizer = copy.deepcopy(state["optimizer"])  # torch would keep the state's own tensors
        for mine, its in zip(self.optimizer.param_groups, optimizer["param_groups"], strict=True):
            if "fused" in mine:
                its["fused"] = mine["fused"]  # this device's matter, wherever the state was taken
        self.optimizer.load_state_dict(optimizer)
        for name in state["weights"].keys() & self.losses.keys():
            self.losses[name] = state["weights"][name], self.losses[name][1]
        for name, judge in self.judges():
            if name in state["prompts"]:
                judge.restore(state["prompts"][name])
                judge.cutouts.restore(state["cutouts"][name])
        self.step = state["step"]
        self._unfinished = None

    def undo(self) -> None:
        """Take the last step back, once: for whoever lost its frame."""
        if self._before is not None:
            self.restore(self._before)


def advance(runs: Sequence[Run]) -> list[Frame]:
    """One step of each run, painted and judged as one batch; several must have painter, judges and size in common.

    When it fails, some may have taken the step and others not: whoever calls it brings them back, see `batch.Batch`.
    """
    for run in runs:
        run._begin()
    made = runs[0].replay(runs) if runs[0].replay is not None else None
    images, losses = made or _anew(runs)
    return [run._finish(image, mine) for run, image, mine in zip(runs, images, losses, strict=True)]


def _anew(runs: Sequence[Run]) -> Made:
    """Images and losses of one step, with the gradient in each z."""
    with torch.enable_grad():
        images, losses = forward(runs)
        for run, mine in zip(runs, losses, strict=True):
            pull = run.latent.pull(run.step)
            if pull is not None:
                mine["init"] = pull
        sum(loss for mine in losses for loss in mine.values()).backward()
    return images, losses


def _set_prompts(run: Run, prompts: str) -> None:
    shares = _shares(run.settings.replace(prompts=prompts))
    for _, judge in run.judges():
        judge.set_prompts(*shares)


def _set_lr(run: Run, lr: float) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = lr


def _set_init_weight(run: Run, weight: float) -> None:
    run.latent.init_weight = weight


def _set_cutouts(run: Run, n: int) -> None:
    for _, judge in run.judges():
        judge.cutouts.n = n


STEERABLE = {"prompts": _set_prompts, "lr": _set_lr, "init_weight": _set_init_weight, "cutouts": _set_cutouts}
"""The settings that may change between two steps, and what brings each into force."""


def check_steerable(settings: Settings, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes, checked and in their settings' own types.

    Raises:
        SettingsError, PromptError: one of them cannot change while a run is on, or not to that.
    """
    for name in changes:
        if name not in STEERABLE:
            raise SettingsError(f"{name!r} cannot change while a run is on: only {', '.join(STEERABLE)} can")
    changed = settings.replace(**changes)
    return {name: getattr(changed, name) for name in changes}


def generate(prompts: str | Sequence | None = None, vqgan: VQGAN | str | Path | None = None,
             clip: Perceptor | str | Path | Sequence | None = None, *, settings: Settings | None = None,
             root: str | Path = ".", pictures: Mapping[str, Path] | None = None,
             steering: Mapping[int, Mapping[str, Any]] | None = None, **changes: Any) -> Run:  # fmt: skip
    """Set up a run: nothing is painted until it is iterated.

    Args:
        prompts: as in `prompts.parse`; None takes the settings'.
        vqgan: a loaded painter, or what `load_vqgan` takes; None takes the settings'.
        clip: a loaded judge, or what `load_clip` takes, or a list of either, or "A + B"; None takes the settings'.
        settings: to begin with; defaults where it is not given.
        root: the folder in which checkpoints are looked for by name.
        pictures: where image prompts are by now, by the names they have in the settings.
        steering: what shall change on the way, as {step: {setting: value}}; see `Run.change`.
        changes: any field of `Settings` by name, such as size=(512, 384), steps=300, seed=7.
    Raises:
        SettingsError, PromptError, ImageError, CheckpointError: each says what was wrong and what to do.
    """
    if prompts is not None:
        changes["prompts"] = prompts if isinstance(prompts, str) else prompt_language.format_prompts(
            prompt_language.parse(prompts))  # fmt: skip
    settings = (settings or Settings()).replace(**changes)
    device = pick_device(settings.device)
    precision = dtypes(settings.precision, able(device))
    painter = vqgan or settings.vqgan
    if not isinstance(painter, VQGAN):
        painter = load_vqgan(painter, device, root, precision.painter)
    judges = _load_judges(clip or settings.clip, device, precision.judge, root)
    for model in (painter, *judges):
        if isinstance(model, torch.nn.Module):
            model.to(device)  # one loaded beforehand may still be on the CPU
    painter.paint_in(painter.precision)  # as this device likes it
    settings = settings.replace(vqgan=painter.name, clip=" + ".join(judge.name for judge in judges))
    latent = _latent(painter, settings, device)
    losses = _losses(judges, settings, pictures or {}, device)
    # As one kernel on a graphics card; on a processor that would round differently.
    fused = {"fused": True} if device.type == "cuda" and settings.optimizer == "adam" else {}
    optimizer = OPTIMIZERS[settings.optimizer](latent.parameters(), lr=settings.lr, **fused)
    run = Run(latent, losses, optimizer, settings.steps, settings, steering)
    painter.sparing = False  # a run before may have been larger
    while (steps := room(run)) < 1 and run.economise():
        pass
    if device.type == "cpu":
        keep_freed(steps >= 2)
    return run


def _load_judges(wanted: Perceptor | str | Path | Sequence, device: torch.device, precision: torch.dtype,
                 root: str | Path) -> list[Perceptor]:  # fmt: skip
    """The judges, loaded where they are only named; each may be there once."""
    wanted = wanted.split(" + ") if isinstance(wanted, str) else wanted
    judges = [
        load_clip(judge, device, precision, root) if isinstance(judge, (str, Path)) else judge
        for judge in (wanted if isinstance(wanted, (list, tuple)) else [wanted])
    ]
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise SettingsError(f"clip={' + '.join(names)!r} has the same judge twice: name each once")
    return judges


def _latent(painter: VQGAN, settings: Settings, device: torch.device) -> VQLatent:
    """What is optimised. A picture to start from is not churned, which would wash it away."""
    churn = 0.0 if settings.init_image else settings.churn
    return VQLatent(painter, _start(painter, settings, device), settings.init_weight, settings.init_decay,
                    settings.ema, churn, settings.churn_decay, _seed(settings, "churn"))  # fmt: skip


@torch.no_grad()
def _start(painter: VQGAN, settings: Settings, device: torch.device) -> Tensor:
    """Where z begins: the codes of the picture to start from (1, h, w), or what `STARTS` has."""
    if settings.init_image:
        picture = load_image(settings.init_image, painter.whole(*settings.size))
        return painter.encode(picture.to(device))
    draw = torch.Generator().manual_seed(_seed(settings, "start"))
    return STARTS[settings.start](painter, *painter.grid(*settings.size), draw)


def _losses(judges: Sequence[Perceptor], settings: Settings, found: Mapping[str, Path],
            device: torch.device) -> dict[str, tuple[float, Callable[[Tensor], Tensor]]]:  # fmt: skip
    """What is liked, by name and with its weight: the prompts by each judge, and the settings' further losses."""
    losses = {judge.name: (1 / len(judges), _prompt_loss(judge, settings, found, device)) for judge in judges}
    for like in prompt_language.parse_optional(settings.losses):
        if like.text not in LOSSES:
            raise SettingsError(f"losses={settings.losses!r}: there is no {like.text!r}; choose {', '.join(LOSSES)}")
        losses[like.text] = like.weight, LOSSES[like.text]
    return losses


def _prompt_loss(judge: Perceptor, settings: Settings, found: Mapping[str, Path], device: torch.device) -> PromptLoss:
    cutouts = Cutouts(judge.size, settings.cutouts, settings.cut_pow, _augment(settings),
                      settings.cutter == "pooled", _seed(settings, judge.name), device, _rounded(judge))  # fmt: skip
    texts, pictures = _shares(settings)
    sources = (found.get(picture.text, picture.text) for picture in pictures)
    images = [load_image(source, area=math.prod(settings.size)).to(device) for source in sources]
    return PromptLoss(judge, texts, cutouts, settings.chunk, list(zip(pictures, images, strict=True)))


def _shares(settings: Settings) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """The prompts that are words and those that are pictures, with weights that share in one whole."""
    texts, pictures = map(prompt_language.parse_optional, (settings.prompts, settings.image_prompts))
    shares = prompt_language.normalise((*texts, *pictures))
    return shares[: len(texts)], shares[len(texts) :]


def _rounded(judge: Perceptor) -> torch.dtype | None:
    """What a judge's crops are made in: bfloat16 if it rounds them to that; not float16, which has too little range."""
    return torch.bfloat16 if getattr(judge, "precision", None) == torch.bfloat16 else None


def _augment(settings: Settings) -> Augment:
    how = AUGMENTS[settings.augment]
    return how if settings.noise < 0 else dataclasses.replace(how, noise=settings.noise)


def _seed(settings: Settings, stream: str) -> int:
    """A seed of its own for each stream of random numbers, so that none moves when another draws more."""
    return (settings.seed * 0x9E3779B97F4A7C15 + zlib.crc32(stream.encode())) % 2**63


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is a graphics card where there is one. Raises SettingsError for another."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f"device={name!r} is not on this machine: choose auto or cpu") from error


def echo(run: Run) -> str:
    """What was understood, for people: each prompt's share, tokens used and cut off, the real size."""
    judges = [loss for _, loss in run.judges()]
    lines = [prompt_language.describe(judges[0].prompts)]
    for read in readings(run):
        parts = [f"{text[:40]} {len(tokens.ids)}" + (f" (cut off: {tokens.cut[:60]} ...)" if tokens.cut else "")
                 for text, tokens in read.texts.items()]  # fmt: skip
        lines.append(f"{read.judge} reads {read.context} tokens: {' · '.join(parts)}")
    vqgan, asked = run.latent.vqgan, run.settings.size
    real = vqgan.whole(*asked)
    if real != asked:
        lines.append(f"painted at {real[0]}x{real[1]}, whole codes of {vqgan.f}, and cropped to {asked[0]}x{asked[1]}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Reading:
    """How a judge reads the prompts that are words: their tokens by text, and how many it takes in a prompt."""

    judge: str
    context: int
    texts: dict[str, Tokens]


def readings(run: Run) -> list[Reading]:
    """What each judge makes of the prompts; only of those that read in tokens, which a perceptor need not."""
    found = []
    for _, judge in run.judges():
        if hasattr(judge.perceptor, "tokens"):
            texts = {prompt.text: judge.perceptor.tokens(prompt.text) for prompt in judge.prompts[: judge.texts]}
            found.append(Reading(judge.perceptor.name, next((one.context for one in texts.values()), 77), texts))
    return found
