"""The judge of the quality table: reads ground, time, weather, objects and colours off a picture.

It never guides anything and is no part of the package: another architecture than the pair's CLIP (residual
convolutions, a classifier per attribute, no text), other scenes, other seeds. `python -m training.judge` trains it and
says how much of fresh renders it reads right; below WORTHY it is not used to measure anything.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vqclip.checkpoints import write_weights

from .data import floats, rendered
from .repaint import bend, multiplies_bfloat16
from .scenes import COLOURED, COLOURS, GROUNDS, OBJECTS, SHAPES, SIDE, TIMES, WEATHERS, Scene, scene

WORTHY = 0.97  # of the attributes of fresh renders
WEIGHTS = Path(__file__).parent / "judge.safetensors"
THINGS = (*OBJECTS, *SHAPES)  # found or not, each for itself
TINTED = (*COLOURED, *SHAPES, "background")  # of one colour each
TINTS = tuple(COLOURS)
IGNORED = -1  # no such attribute in this picture


@dataclass(frozen=True)
class Reading:
    """What the judge sees in one picture.

    Attributes:
        ground: of GROUNDS, or "" for a plain shape.
        time, weather: of TIMES and WEATHERS, as likely as may be; of no meaning for a plain shape.
        things: of THINGS, those that are there.
        colours: the likeliest colour of each of TINTED, whether it is there or not.
    """

    ground: str
    time: str
    weather: str
    things: frozenset[str]
    colours: dict[str, str]

    def holds(self, fact: str) -> bool:
        """Whether a fact, as `Scene.facts` has them, is true of the picture."""
        return fact in Scene(0, self.ground, self.time, self.weather, self._objects(), self.colours["background"]).facts

    def _objects(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, self.colours.get(name, "")) for name in sorted(self.things))


class Judge(nn.Module):
    """Picture (B, 3, 128, 128) in [0, 1] -> logits of each attribute."""

    HEADS = {"ground": len(GROUNDS) + 1, "time": len(TIMES), "weather": len(WEATHERS), "things": len(THINGS),
             "colours": len(TINTED) * len(TINTS)}  # fmt: skip

    def __init__(self, width: int = 48):
        super().__init__()
        self.body = nn.Sequential(
            _step(3, width // 2, 4), _step(width // 2, width, 3), Residual(width),
            _step(width, 2 * width, 3), Residual(2 * width), Residual(2 * width),
            _step(2 * width, 3 * width, 3), Residual(3 * width), Residual(3 * width),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(6 * width, count) for name, count in self.HEADS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        grid = self.body(images * 2 - 1)
        pooled = torch.cat([grid.mean((2, 3)), grid.amax((2, 3))], 1)
        out = {name: head(pooled).float() for name, head in self.heads.items()}
        return {**out, "colours": out["colours"].view(-1, len(TINTED), len(TINTS))}

    @torch.no_grad()
    def read(self, images: Tensor) -> list[Reading]:
        """Pictures (B, 3, H, W) in [0, 1], of any size -> what is on them."""
        if images.shape[2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        logits = self(images)
        found = (logits.pop("things") > 0).tolist()
        seen = {name: values.argmax(-1).tolist() for name, values in logits.items()}
        return [
            Reading(
                (*GROUNDS, "")[seen["ground"][k]], TIMES[seen["time"][k]], WEATHERS[seen["weather"][k]],
                frozenset(name for name, there in zip(THINGS, found[k], strict=True) if there),
                {name: TINTS[c] for name, c in zip(TINTED, seen["colours"][k], strict=True)},
            )
            for k in range(len(images))
        ]  # fmt: skip


class Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, width: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.convs(x))


def _step(before: int, after: int, kernel: int) -> nn.Sequential:
    """Half the side."""
    conv = nn.Conv2d(before, after, kernel, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.SiLU())


def load_judge(path: Path = WEIGHTS) -> Judge:
    """The trained judge, ready to read."""
    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(path).items()}, strict=False)
    return judge.eval()


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """What the heads should say; IGNORED where a picture has no such attribute."""

    def index(names, name):
        return names.index(name) if name in names else IGNORED

    colours = torch.full((len(scenes), len(TINTED)), IGNORED)
    for k, s in enumerate(scenes):
        for name, colour in (*s.objects, ("background", s.backdrop)):
            if colour and name in TINTED:
                colours[k, TINTED.index(name)] = TINTS.index(colour)
    return {
        "ground": torch.tensor([index((*GROUNDS, ""), s.ground) for s in scenes]),
        "time": torch.tensor([index(TIMES, s.time) if s.ground else IGNORED for s in scenes]),
        "weather": torch.tensor([index(WEATHERS, s.weather) if s.ground else IGNORED for s in scenes]),
        "things": torch.tensor([[float(name in dict(s.objects)) for name in THINGS] for s in scenes]),
        "colours": colours,
    }


def right(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> dict[str, float]:
    """The share of attributes read right, by kind and over all; a thing that is not there counts among `false`."""
    tally: dict[str, list[bool]] = {"ground": [], "time": [], "weather": [], "object": [], "colour": []}
    wrong = 0
    for first in range(0, len(scenes), 100):
        readings = judge.read(floats(pictures[first : first + 100]))
        for s, reading in zip(scenes[first : first + 100], readings, strict=True):
            tally["ground"].append(reading.ground == s.ground)
            if s.ground:
                tally["time"].append(reading.time == s.time)
                tally["weather"].append(reading.weather == s.weather)
            tally["object"] += [name in reading.things for name, _ in s.objects]
            tally["colour"] += [reading.colours[name] == colour for name, colour in s.objects if colour]
            tally["colour"] += [reading.colours["background"] == s.backdrop] if s.backdrop else []
            wrong += len(reading.things - dict(s.objects).keys())
    shares = {kind: float(np.mean(hits)) for kind, hits in tally.items()}
    return {**shares, "all": float(np.mean(sum(tally.values(), []))), "false": wrong / len(scenes)}


def disturbed(images: Tensor, plain: Tensor) -> Tensor:
    """As paintings differ from renders: mirrored, softer, nearer or farther, out of shape, blotched, grained.

    A judge that had only seen softer and shifted renders (.990 of fresh ones right) read no circle off a clean green
    disc that was larger than discs are rendered, and a yellow star off every purple one with a halo.

    Args:
        plain: (B,) bool, which are plain shapes: these bear more than landscapes with small things in them.
    """
    B = len(images)
    if torch.rand(()) < 0.5:
        images = images.flip(3)
    if torch.rand(()) < 0.6:  # softer
        small = int(SIDE * float(torch.empty(()).uniform_(0.3, 1.0)))
        small = F.interpolate(images, (small, small), mode="bilinear", antialias=True, align_corners=False)
        images = F.interpolate(small, (SIDE, SIDE), mode="bilinear", align_corners=False)
    if torch.rand(()) < 0.5:
        images = bend(images, 0.3)
    nearer = 1 + torch.where(plain, 0.35, 0.12)[:, None] * (2 * torch.rand(B, 2) - 1)  # across and down
    middle = 0.1 * (2 * torch.rand(B, 2, 1) - 1)
    grid = F.affine_grid(torch.cat([torch.diag_embed(1 / nearer), middle], 2), (B, 3, SIDE, SIDE), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    for cells, most in ((3, 0.08), (6, 0.08), (16, 0.06)):  # blotches, and patches of a code each
        strength = most * torch.rand(B, 1, 1, 1).square() * torch.where(plain, 1.5, 1.0).view(B, 1, 1, 1)
        blotches = torch.randn(B, 3, cells, cells) + torch.randn(B, 1, cells, cells)
        images = images + strength * F.interpolate(blotches, (SIDE, SIDE), mode="bicubic")
    light = 1 + 0.06 * torch.randn(B, 3, 1, 1)
    return (images * light + 0.03 * torch.rand(B, 1, 1, 1) * torch.randn_like(images)).clamp(0, 1)


def anything(seed: int) -> Scene:
    """The scene of a seed, held-out pairs among all."""
    return scene(seed, held_out=True)


def train(folder: Path, count: int, epochs: int, processes: int, begin: Path | None = None) -> Judge:
    """A judge taught on `count` scenes of its own, held-out pairs among them, and resumed where it was stopped.

    It is the mean of its weights over the last half of the steps (Izmailov et al. 2018, arXiv 1803.05407): of two, each
    right of .994 of the renders of its world, one read no heart where the other had read three clear ones.

    Args:
        begin: the weights to begin with, if not with none.
    """
    pictures, _ = rendered(folder, count, 1_000_000, processes, of=anything)
    scenes = [anything(1_000_000 + k) for k in range(count)]
    truth, judge, batch = labels(scenes), load_judge(begin).train() if begin else Judge(), 64
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    mean = AveragedModel(judge, use_buffers=True)
    parts = {"judge": judge, "mean": mean, "optimizer": optimizer, "schedule": schedule}
    last, done = folder / "judge.ckpt", 0
    if last.exists():
        state = torch.load(last, weights_only=True)
        done = state["done"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for step in range(done, steps):
        epoch, at = divmod(step, count // batch)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))[at * batch : (at + 1) * batch]
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(torch.device("cpu"))):
            plain = truth["ground"][chosen] == len(GROUNDS)
            seen = judge(disturbed(floats(pictures[chosen.numpy()]), plain))
        want = {name: value[chosen] for name, value in truth.items()}
        loss = F.binary_cross_entropy_with_logits(seen["things"], want["things"]) * 10
        for name in ("ground", "time", "weather"):
            loss = loss + F.cross_entropy(seen[name], want[name], ignore_index=IGNORED)
        loss = loss + F.cross_entropy(seen["colours"].flatten(0, 1), want["colours"].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= steps // 2:
            mean.update_parameters(judge)
        if step % 50 == 0:
            print(f"{step}/{steps}  {float(loss.detach()):.3f}", flush=True)
        if step % 200 == 199 or step + 1 == steps:
            torch.save({**{name: part.state_dict() for name, part in parts.items()}, "done": step + 1}, last)
    return mean.module.eval()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--folder", type=Path, default=Path("training/runs"))
    ask.add_argument("--scenes", type=int, default=12_000)
    ask.add_argument("--epochs", type=int, default=8)
    ask.add_argument("--processes", type=int, default=2)
    ask.add_argument("--begin", type=Path, help="a judge to be taught further")
    asked = ask.parse_args()
    judge = train(asked.folder, asked.scenes, asked.epochs, asked.processes, asked.begin)
    fresh = [anything(2_000_000 + k) for k in range(2000)]
    shares = right(judge, rendered(asked.folder, 2000, 2_000_000, asked.processes, of=anything)[0], fresh)
    print(" ".join(f"{kind} {share:.3f}" for kind, share in shares.items()))
    if shares["all"] < WORTHY:
        raise SystemExit(f"the judge reads {shares['all']:.3f} of fresh renders, less than {WORTHY}: train it longer")
    state = judge.state_dict().items()
    write_weights({key: value.half() for key, value in state if value.is_floating_point()}, WEIGHTS)


if __name__ == "__main__":
    main()
