"""How well the embedded pair paints what words say: pictures for fixed prompts, read by the judge, as a table.

    python -m training.quality                    # all of it: hours on two cores, and it goes on where it was stopped
    python -m training.quality --prompts tuning --seeds 1 --languages en --part prompts --settings steps=100

The package's own loop paints, at its default settings. Beside what was painted stand chance (pictures read for each
other's prompts) and ceiling (fresh renders of what the prompts name). A picture that is there already for the same
pair and settings is not painted again: after a change of the loop itself, take another `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import deque
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from vqclip import Batch, Settings, generate
from vqclip.checkpoints import EMBEDDED
from vqclip.files import atomic, atomic_path
from vqclip.files import sha256 as hashed

from .asked import read_prompts, sweep, without
from .captions import LANGUAGES
from .judge import WEIGHTS, WORTHY, Judge, load_judge, right
from .measures import (
    BARS,
    Seen,
    by_chance,
    log_probability,
    pictures,
    read,
    renders,
    rows_of,
    share,
    spearman,
    tally,
    variation,
)
from .scenes import render, scene
from .sheets import blind, sheet

PARTS = ("prompts", "weights", "negatives")


@dataclass(frozen=True)
class Row:
    """A line of the table: what was reached, and the bars; `form` is how its numbers are written."""

    name: str
    value: float
    must: float
    should: float
    counts: str = ""
    chance: float | None = None
    ceiling: float | None = None
    form: str = ".1%"
    at_most: bool = False  # smaller is better

    @property
    def verdict(self) -> str:
        """The higher of the bars that it reaches: `should`, `must` or `no`."""
        sign = -1 if self.at_most else 1
        reached = [word for word in ("should", "must") if sign * (self.value - getattr(self, word)) >= -1e-9]
        return reached[0] if reached else "no"

    def __str__(self) -> str:
        bars = [("<= " if self.at_most else "") + format(bar, self.form) for bar in (self.must, self.should)]
        rest = ["" if value is None else format(value, self.form) for value in (self.chance, self.ceiling)]
        cells = [self.name, *bars, format(self.value, self.form), self.verdict, self.counts, *rest]
        return f"| {' | '.join(cells)} |"


HEADER = "| what the judge reads | must | should | painted | reaches | of | chance | ceiling |\n" + "|---" * 8 + "|"


# ------------------------------------------------------------------------------------------------------- painting


@lru_cache
def load_pair(folder: Path) -> tuple:
    """The pair in a folder, once a process, as `generate` loads it; in any folder it draws the same random numbers."""
    torch.set_num_threads(1)
    run = generate(None, folder / "vqgan.safetensors", folder / "clip.safetensors")
    painter, ((_, judging),) = run.latent.vqgan, run.judges()
    perceptor = judging.perceptor
    painter.name = perceptor.name = "embedded"
    return painter, perceptor


def paint(jobs: list[tuple[Settings, Path]], pair: Path) -> list[str]:
    """Paint pictures side by side, keep each with its seconds of a core, however busy the machine is, and say so."""
    models = load_pair(pair)
    begun = time.process_time()
    frames = deque(Batch([generate(None, *models, settings=settings) for settings, _ in jobs], len(jobs)), 1).pop()
    seconds, about = (time.process_time() - begun) / len(jobs), PngInfo()
    about.add_text("seconds", f"{seconds:.2f}")
    for frame, (_, path) in zip(frames, jobs, strict=True):
        with atomic_path(path) as unfinished:
            frame.pil.save(unfinished, pnginfo=about)
    return [f"{seconds:.1f} s  seed {settings.seed}  {settings.prompts}" for settings, _ in jobs]


def plan(wanted: list[tuple[str, int]], settings: Settings, pair: Path,
         out: Path) -> dict[tuple[str, int], tuple[Settings, Path]]:  # fmt: skip
    """(prompt, seed) -> its settings and its file, of which the name is a hash of the pair and all settings."""
    weights = [hashed(pair / f"{kind}.safetensors") for kind in ("vqgan", "clip")]
    jobs = {}
    for text, seed in wanted:
        chosen = settings.replace(prompts=text, seed=seed)
        key = sha256(json.dumps([weights, chosen.to_dict()], sort_keys=True).encode()).hexdigest()[:20]
        jobs[text, seed] = chosen, out / "pictures" / f"{key}.png"
    return jobs


def paint_all(jobs: list[tuple[Settings, Path]], pair: Path, processes: int, at_once: int) -> None:
    """Paint what is not there yet: so many processes, each with a core and so many pictures at once."""
    missing = [job for job in jobs if not job[1].exists()]
    if not missing:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes begin with it
    parts, done = [missing[k : k + at_once] for k in range(0, len(missing), at_once)], 0
    with get_context("spawn").Pool(min(processes, len(parts))) as pool:
        for lines in pool.imap_unordered(partial(paint, pair=pair), parts):
            for line in lines:
                done += 1
                print(f"{done}/{len(missing)}  {line}", flush=True)


# ------------------------------------------------------------------------------------------------------ measuring


def worthy(judge: Judge, count: int = 300) -> dict[str, float]:
    """The judge's shares on fresh renders; SystemExit when they are not good enough to measure by."""
    fresh = [scene(3_000_000 + k, held_out=True) for k in range(count)]
    shares = right(judge, np.stack([render(s) for s in fresh]), fresh)
    if shares["all"] < WORTHY:
        raise SystemExit(f"the judge reads {shares['all']:.3f} of {count} fresh renders, less than {WORTHY}: "
                         "train it longer (make judge)")  # fmt: skip
    return shares


def attributes(judge: Judge, seen: list[Seen], real: Tensor) -> list[Row]:
    """The rows of BARS that something was asked of, and how far chance is left behind."""
    painted, shuffled = tally([(s.facts, s.reading) for s in seen]), by_chance(seen)
    best = tally([(s.facts, reading) for s, reading in zip(seen, read(judge, real), strict=True)])
    rows = [
        Row(name, share(*painted[row]), must, should, f"{painted[row][0]}/{painted[row][1]}", share(*shuffled[row]),
            share(*best[row]))
        for row, (name, must, should) in BARS.items() if painted[row][1]
    ]  # fmt: skip
    if shuffled["all"][0]:
        times = share(*painted["all"]) / share(*shuffled["all"])
        rows.append(Row("  as many times as by chance", times, 8, 8, form=".1f"))
    return rows


def steered(judge: Judge, paths: dict, a: str, b: str, seeds: range) -> dict[str, list[float]]:
    """How much surer of a than of b a judge is at each weight of a sweep, the mean of seeds: by log P and by P.

    To tenths and to hundredths; what is finer is no difference. A judge that is sure sees but ties by P.
    """
    logs, plain = [], []
    for text in sweep(a, b):
        images = pictures([paths[text, seed] for seed in seeds])
        of_a, of_b = log_probability(judge, images, a), log_probability(judge, images, b)
        logs.append(round(float((of_a - of_b).mean()), 1))
        plain.append(round(float((of_a.exp() - of_b.exp()).mean()), 2))
    return {"log P": logs, "P": plain}


def weights(judge: Judge, paths: dict, pairs: list, seeds: range) -> tuple[list[Row], dict]:
    """How many of the pairs follow their weights, by log P; below it the same by P."""
    curves = {f"{a} | {b}": steered(judge, paths, a, b, seeds) for a, b in pairs}
    rows, order = [], {}
    for kind, name in ("log P", "pairs that follow five weights, Spearman >= 0.9"), ("P", "  by P to hundredths"):
        order[kind] = {pair: spearman(range(len(curve[kind])), curve[kind]) for pair, curve in curves.items()}
        good = sum(value >= 0.9 - 1e-9 for value in order[kind].values())
        rows.append(Row(name, good, 8, 10, f"of {len(pairs)}", form=".0f"))
    return rows, {"difference": curves, "spearman": order}


def negatives(judge: Judge, paths: dict, entries: list[dict], seeds: range) -> tuple[list[Row], dict]:
    """Of the pictures that show a thing, how many no longer do with a negative weight on it."""
    plain, removed = {}, {}
    for entry in entries:
        before, after = (read(judge, pictures([paths[text, seed] for seed in seeds]))
                         for text in (entry["prompt"], without(entry)))  # fmt: skip
        shown = [k for k, reading in enumerate(before) if reading.holds(entry["fact"])]
        plain[without(entry)] = len(shown)
        removed[without(entry)] = sum(not after[k].holds(entry["fact"]) for k in shown)
    hits, count = sum(removed.values()), sum(plain.values())
    row = Row("a negative weight removes what it names", share(hits, count), 0.6, 0.8, f"{hits}/{count}")
    return [row], {text: {"shown": plain[text], "removed": removed[text]} for text in plain}


def look_at(judge: Judge, paths: dict, prompts: list[dict], language: str, seeds: range) -> list[Seen]:
    """What the judge reads off the pictures painted for the prompts in a language."""
    asked = [(p[language], seed, tuple(p["facts"])) for p in prompts for seed in seeds]
    found = [paths[text, seed] for text, seed, _ in asked]
    readings = read(judge, pictures(found))
    return [Seen(*what, path, reading) for what, path, reading in zip(asked, found, readings, strict=True)]


def of_prompts(judge: Judge, seen: dict[str, list[Seen]]) -> list[Row]:
    """The rows about single prompts: the first language's attributes, the others against it, how quiet pictures are."""
    (first, ours), *others = seen.items()
    real, painted = renders(ours), pictures([s.path for s in ours])
    rows = attributes(judge, ours, real)
    best = share(sum(s.right for s in ours), len(ours))
    for language, theirs in others:
        hits = sum(s.right for s in theirs)
        rows.append(Row(f"{language}: prompts less right than {first}", best - share(hits, len(theirs)), 0.07, 0.03,
                        f"{hits}/{len(theirs)}", at_most=True))  # fmt: skip
    ratio = float(variation(painted).mean() / variation(real).mean())
    rows.append(Row("coarse total variation, against real renders", ratio, 1.4, 1.2, form=".2f", at_most=True))
    return rows


def tile(seen: Seen) -> tuple[Path, str]:
    """A picture for a contact sheet, and its prompt with a sign: whether all that it asks for is there."""
    return seen.path, f"{'-+'[seen.right]} {seen.text}"


def measure(judge: Judge, shares: dict[str, float], asked: argparse.Namespace) -> list[Row]:
    """Paint what is missing, read all of it, print the table, write contact sheets and `quality.json`."""
    book, settings, seeds = read_prompts(), Settings().override(asked.settings), range(asked.seeds)
    prompts = [p for p in book[asked.prompts] if not asked.only or rows_of(p["facts"]) & set(asked.only)]
    if unknown := {*asked.languages} - prompts[0].keys():
        raise SystemExit(f"the {asked.prompts} prompts are not written in {min(unknown)}: choose --languages en")
    texts = {
        "prompts": [p[language] for language in asked.languages for p in prompts],
        "weights": [text for a, b in book["weights"] for text in sweep(a, b)],
        "negatives": [text for entry in book["negatives"] for text in (entry["prompt"], without(entry))],
    }
    wanted = [(text, seed) for seed in seeds for part in asked.part for text in texts[part]]
    jobs = plan(wanted, settings, asked.pair, asked.out)
    paint_all(list(jobs.values()), asked.pair, asked.jobs, asked.at_once)
    paths = {key: path for key, (_, path) in jobs.items()}
    rows, report = [], {"pair": str(asked.pair), "settings": settings.to_dict(), "prompts": asked.prompts,
                        "seeds": asked.seeds, "judge on fresh renders": shares}  # fmt: skip
    if "prompts" in asked.part:
        seen = {language: look_at(judge, paths, prompts, language, seeds) for language in asked.languages}
        rows += of_prompts(judge, seen)
        for language, some in seen.items():
            sheet(asked.out / f"{language}.jpg", list(map(tile, some)))
        firsts = zip(*(some[:: asked.seeds] for some in seen.values()), strict=True)
        sheet(asked.out / "languages.jpg", [tile(one) for prompt in firsts for one in prompt])
        report["pictures"] = [
            {"language": language, "text": s.text, "seed": s.seed, "file": s.path.name,
             "facts": {fact: s.reading.holds(fact) for fact in s.facts}} for language in seen for s in seen[language]
        ]  # fmt: skip
        if asked.blind:
            blind(asked.blind, seen[asked.languages[0]])
    for part, how in (("weights", weights), ("negatives", negatives)):
        if part in asked.part:
            found, report[part] = how(judge, paths, book[part], seeds)
            rows += found
            sheet(asked.out / f"{part}.jpg", [(paths[text, 0], text) for text in texts[part]], across=10)
    seconds = median(float(Image.open(path).text["seconds"]) for path in paths.values())
    rows.append(Row("seconds of one core a picture (median)", seconds, 20, 20, form=".1f", at_most=True))
    print(f"judge on fresh renders: {' '.join(f'{kind} {value:.3f}' for kind, value in shares.items())}")
    print("\n".join([HEADER, *map(str, rows)]))
    report["rows"] = [{**asdict(row), "verdict": row.verdict} for row in rows]
    with atomic(asked.out / "quality.json", "w") as file:
        file.write(json.dumps(report, ensure_ascii=False, indent=1))
    return rows


def some_of(names):
    """Reads a list with commas, and says so when one of it is not among the names."""

    def read_list(text: str) -> list[str]:
        chosen = text.split(",")
        wrong = [name for name in chosen if name not in names]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(names)}")
        return chosen

    return read_list


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--prompts", choices=("test", "validation", "tuning", "prototype"), default="test")
    ask.add_argument("--seeds", type=int, default=3, help="how many pictures a prompt")
    ask.add_argument("--part", type=some_of(PARTS), default=list(PARTS), help=",".join(PARTS))
    ask.add_argument("--languages", type=some_of(LANGUAGES), default=list(LANGUAGES),
                     help="the first is what others are held against")  # fmt: skip
    ask.add_argument("--only", type=some_of(BARS), default=[], help=f"prompts that name any of {','.join(BARS)}")
    ask.add_argument("--pair", type=Path, default=EMBEDDED, help="a folder with vqgan and clip (.safetensors, .yaml)")
    ask.add_argument("--settings", nargs="*", default=[], metavar="key=value")
    ask.add_argument("--jobs", type=int, default=2, help="processes that paint, a core each")
    ask.add_argument("--at-once", type=int, default=1, help="pictures that each paints at a time; 8 pays on a card")
    ask.add_argument("--judge", type=Path, default=WEIGHTS)
    ask.add_argument("--out", type=Path, default=Path("training/runs/quality"))
    ask.add_argument("--blind", type=Path, help="a folder for 40 pictures to be told by someone who knows no prompts")
    asked = ask.parse_args()
    if not asked.judge.exists():
        raise SystemExit(f"there is no judge at {asked.judge}: train one first (make judge)")
    judge = load_judge(asked.judge)
    shares = worthy(judge)
    measure(judge, shares, asked)


if __name__ == "__main__":
    main()
