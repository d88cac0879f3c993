"""Make the embedded pair: `python -m training.train [key=value ...]`, keys as in recipe.yaml.

Three stages, each resumed where it stopped: the VQGAN on spoilt codes; the VQGAN on nearly right ones; the CLIP. Then
its texts are put right, in some minutes. Runs unchanged on a CPU or a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file
from torch import Tensor

from vqclip.files import atomic, sha256
from vqclip.memory import keep_freed
from vqclip.perceptor import openai_clip

from .batches import Captioned, Stock, Vocabulary
from .captions import all_parts, caption
from .codes import sample_patches
from .data import painters, rendered
from .export import export_clip, export_vqgan, guide
from .kin import FAMILIES, SIZE, kin
from .mosaic import Mosaic, uneven
from .repaint import multiplies_bfloat16, repaint, show
from .scenes import render, scattered, scene
from .texts import of_texts, put_right, said_and_read
from .train_clip import JudgesTraining
from .train_vqgan import Crops, PaintersTraining
from .walkers import Walkers

EVERY = 50  # steps it is counted anew how many there will be, if they are to end at a time
RECIPE = Path(__file__).parent / "recipe.yaml"


def read_recipe(changes: list[str]) -> DictConfig:
    """The recipe with `key=value` changes; raises AttributeError for a key or a part that there is not."""
    recipe = OmegaConf.load(RECIPE)
    OmegaConf.set_struct(recipe, True)
    OmegaConf.set_struct(recipe.texts.led, False)  # takes any part, but no other names: hours later that would be late
    recipe.merge_with_dotlist(changes)
    for part, how in recipe.texts.led.items():
        if unknown := {part, *(how.mix.keys() - {"mean"})} - {*all_parts()}:
            raise AttributeError(f"texts.led.{part}: captions have no {min(unknown)!r}")
        if how.keys() != {"adds", "mix"}:
            raise AttributeError(f"texts.led.{part} wants adds and mix, and has {', '.join(how)}")
    return recipe


def on_a_card(recipe: DictConfig) -> bool:
    """Whether a graphics card trains: where there is one, and the recipe does not say otherwise."""
    return recipe.accelerator != "cpu" and torch.cuda.is_available()


class Deadline(pl.Callback):
    """Makes the steps as many as there is time for, by what the last EVERY of them took.

    Args:
        recipe: of which `clip.steps` becomes what it came to.
        minutes: from the first step on.
    """

    def __init__(self, recipe: DictConfig, minutes: float):
        self.recipe, self.seconds, self.seen, self.until, self.before = recipe, 60 * minutes, 0, 0.0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_idx: int) -> None:
        now, self.seen = time.monotonic(), self.seen + 1
        self.until = self.until or now + self.seconds
        if self.seen % EVERY and now < self.until:
            return
        if self.seen > EVERY or now >= self.until:  # in the first ones, things are compiled and fetched
            left = max(0.0, self.until - now)
            self.recipe.clip.steps = module.hparams.steps = (
                module.global_step // 2 + 1 + int(left / (now - self.before) * EVERY))  # fmt: skip
            trainer.fit_loop.epoch_loop.max_steps = 2 * module.hparams.steps
        self.before = now


def fit(module: pl.LightningModule, batches, recipe: DictConfig, name: str, steps: int, *callbacks) -> None:
    """Train until `steps`, from the last checkpoint of that name if there is one.

    Args:
        module: has two optimisers; Lightning counts two steps for one batch.
        batches: gives the data from a step on: `batches(skip)`.
    """
    folder = Path(recipe.folder) / name
    last = folder / "last.ckpt"
    done = torch.load(last, map_location="cpu", weights_only=False)["global_step"] // 2 if last.exists() else 0
    if done >= steps:
        module.load_state_dict(torch.load(last, map_location="cpu", weights_only=False)["state_dict"])
        return
    keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=recipe.save_every * 2)
    trainer = pl.Trainer(
        max_steps=steps * 2, max_epochs=-1, accelerator=recipe.accelerator, devices=1,
        precision=recipe.precision, callbacks=[keep, *callbacks], logger=CSVLogger(folder, "curves"),
        log_every_n_steps=25, enable_model_summary=False, enable_progress_bar=sys.stderr.isatty(),
    )  # fmt: skip
    ahead = recipe.workers if name == "clip" else 0
    loader = torch.utils.data.DataLoader(batches(done), batch_size=None, num_workers=ahead,
                                         prefetch_factor=4 if ahead else None, pin_memory=torch.cuda.is_available(),
                                         multiprocessing_context="fork" if ahead else None)  # fmt: skip
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=False)
    trainer.save_checkpoint(last)


def painters_training(recipe: DictConfig, stage: str, seed: int) -> PaintersTraining:
    """A painter of the recipe's size, not trained yet."""
    v, c = recipe.vqgan, recipe[stage]
    return PaintersTraining(OmegaConf.to_container(v.ddconfig), v.n_embed, v.embed_dim, c.lr, c.steps, c.wrong,
                            c.jitter, c.critic_from, c.critic_share, seed)  # fmt: skip


def kept_vqgan(recipe: DictConfig, pictures: np.ndarray) -> PaintersTraining:
    """The painter of the pair in `recipe.begin`, as it is; its projection is read off the patches shipped with it."""
    painting = painters_training(recipe, "sharper", recipe.seed)
    weights = {name: value.float() for name, value in load_file(Path(recipe.begin) / "vqgan.safetensors").items()}
    painting.weight.copy_(uneven(weights.pop("patches").flatten(1)))
    painting.mean.copy_(sample_patches(pictures, painting.f, recipe.vqgan.patches, recipe.seed).mean(0))
    painting.painter.load_state_dict(weights)
    return painting


def train_vqgan(recipe: DictConfig, pictures: np.ndarray) -> PaintersTraining:
    """The painter: first on codes of which many are wrong, then, sharper, on few. One to begin with only sharper."""
    v = recipe.vqgan

    def stage(name: str, number: int, before: PaintersTraining | None = None) -> PaintersTraining:
        c, painting = recipe[name], painters_training(recipe, name, recipe.seed + number)
        if before is not None:
            painting.load_state_dict(before.state_dict())
        if (not before or recipe.begin) and not (Path(recipe.folder) / name / "last.ckpt").exists():
            painting.fit_codes(pictures, v.patches, v.rounds, recipe.seed, further=bool(before))
        fit(painting, lambda skip: Crops(pictures, v.batch, v.crop, recipe.seed + number, skip), recipe, name, c.steps)
        return painting

    return stage("sharper", 1, kept_vqgan(recipe, pictures) if recipe.begin else stage("vqgan", 0))


def repainted(recipe: DictConfig, pictures: np.ndarray, painting: PaintersTraining) -> dict[str, np.ndarray]:
    """All that `repaint` makes for the recipe, from `recipe.folder` or painted there now, chunk by chunk.

    Beside its arrays stands `odds` (N,): how often each picture is to be drawn.
    """
    chunks, mosaic, side = [], Mosaic(painting), recipe.clip.chunk
    everything, known = np.arange(len(pictures)), [scattered(k) for k in range(len(pictures))]
    with_things = np.array([k for k in everything if known[k].objects])
    to_bare = np.array([k for k in everything if known[k].objects or known[k].weather != "clear"])
    with painters(recipe.processes) as pool:
        for kind, count in recipe.clip.chunks.items():
            order = {"bare": to_bare, "bent": with_things}.get(kind, everything)
            for k in range(count):
                path = Path(recipe.folder) / f"painted-{kind}-{k}.npz"
                if not path.exists():
                    scenes, seed = order[np.arange(k * side, (k + 1) * side) % len(order)], recipe.seed + len(chunks)
                    made = repaint(painting, mosaic, pictures, scenes, seed, kind, partial(pool.map, render))
                    with atomic(path) as file:
                        np.savez(file, **made)
                with np.load(path) as stored:
                    chunks.append({name: stored[name] for name in ("scene", "picture", "share")})
                chunks[-1]["odds"] = np.full(side, recipe.clip.drawn[kind] / (count * side))
    made = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return {**made, "odds": made["odds"] / made["odds"].sum()}


def train_clip(recipe: DictConfig, scenes: tuple[np.ndarray, np.ndarray], painting: PaintersTraining) -> JudgesTraining:
    """The judge: against mosaics of spoilt codes, and then also against what the painter makes of them."""
    c, network = recipe.clip, OmegaConf.to_container(recipe.clip.network)
    relatives = rendered(Path(recipe.folder), c.kin * len(FAMILIES) * SIZE, processes=recipe.processes, of=kin)
    if on_a_card(recipe):
        painting.cuda()
    painted = repainted(recipe, scenes[0], painting)
    torch.manual_seed(recipe.seed)
    w = c.walkers
    walkers = Walkers(partial(show, painting), Mosaic(painting), w.count, scenes[0].shape[1] // painting.f, w.length)
    stock = Stock(scenes, relatives, painted, w.count)
    judging = JudgesTraining(network, c.lr, c.steps, c.weight_decay, c.pointing, walkers, stock, c.mean_from,
                             w.guided, recipe.seed, c.compiled)  # fmt: skip
    if recipe.begin:
        begin_with(judging.clip, judging.vocabulary, Path(recipe.begin) / "clip.safetensors")
        said, read = said_and_read(judging.clip, judging.vocabulary)
        judging.sums.fit(said, F.normalize(read, dim=1))
    for p in of_texts(judging.clip).values():
        p.requires_grad_(not c.texts)

    def batches(skip: int) -> Captioned:
        return Captioned(len(scenes[0]), c.kin, painted, judging.vocabulary, c.batch, c.rounds, c.loose, recipe.seed,
                         c.painted_from, c.painted, (w.count, w.length, w.each), c.walking_from, skip)  # fmt: skip

    fit(judging, batches, recipe, "clip", c.steps, *([Deadline(recipe, c.minutes)] if c.minutes else []))
    judging.settle()
    return judging


def begin_with(clip, vocabulary: Vocabulary, path: Path) -> None:
    """Take the weights of a CLIP that was shipped, without the guidance that it was given.

    Tokens that it never met begin as they would in a new one. A tower that has more blocks now gets them at its end,
    and each hands on what it is given until it has learnt more (Net2Net, Chen et al. 2015, arXiv 1511.05641).
    """
    there, weights = clip.state_dict(), shipped(clip, vocabulary, path)
    new = {name: torch.zeros_like(value) if ".out_proj." in name or ".c_proj." in name else value
           for name, value in there.items() if ".resblocks." in name and name not in weights}  # fmt: skip
    clip.load_state_dict({**weights, **new})
    share = OmegaConf.load(path.with_suffix(".yaml")).recipe.clip.guidance
    guide(clip, some_captions(vocabulary), -share / (1 - share))


def shipped(clip, vocabulary: Vocabulary, path: Path) -> dict[str, Tensor]:
    """The weights of a CLIP that was shipped, by name, in place of those of one with a vocabulary of its own."""
    weights, rows = load_file(path), vocabulary.rows
    met = weights.pop("vocab").tolist()
    if forgotten := [token for token in met if token not in rows]:
        raise SystemExit(f"{path} knows {len(forgotten)} tokens that captions no longer have: train one from nothing")
    embedded = clip.token_embedding.weight.detach().clone()
    embedded[[rows[token] for token in met]] = weights["token_embedding.weight"].float()
    return {**{name: value.float() for name, value in weights.items()}, "token_embedding.weight": embedded}


def say_as(clip, vocabulary: Vocabulary, path: Path) -> None:
    """Take the text tower of a CLIP that was shipped, with its guidance."""
    weights = shipped(clip, vocabulary, path)
    clip.load_state_dict({name: weights[name] for name in of_texts(clip)}, strict=False)


def kept_clip(recipe: DictConfig) -> tuple:
    """The CLIP of the pair in `recipe.begin` as it is, and a vocabulary for it."""
    network = OmegaConf.to_container(recipe.clip.network)
    vocabulary = Vocabulary(network["context_length"])
    torch.manual_seed(recipe.seed)
    clip = openai_clip("model").CLIP(**network, vocab_size=len(vocabulary.ids))
    begin_with(clip, vocabulary, Path(recipe.begin) / "clip.safetensors")
    return clip, vocabulary


@torch.no_grad()
def stay_near(clip, before: dict[str, Tensor], share: float) -> None:
    """Take a share of the weights that a CLIP's image tower had `before` training back in.

    What it learns anew costs some of what it knew; halfway between the two there is nearly all of both (WiSE-FT,
    Wortsman et al. 2021, arXiv 2109.01903). Where texts of another pair are taken it is that pair's image tower, which
    they were put right for. A block that was not there before stays as it is.
    """
    for name, value in clip.visual.named_parameters(prefix="visual"):
        if name in before:
            value.lerp_(before[name].to(value), share)


def some_captions(vocabulary: Vocabulary) -> Tensor:
    """Captions (1000, context) of the first scenes, the same for ever."""
    rng = np.random.default_rng(0)
    texts = [caption(scene(k), rng)[0] for k in range(1000)]
    return vocabulary.encode(texts)


def provenance(recipe: DictConfig) -> dict:
    """What made the weights: the recipe, versions, the commit."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RECIPE.parent)
    plain = OmegaConf.to_container(recipe)
    plain = {key: value for key, value in plain.items() if key not in ("folder", "out", "processes", "workers")}
    if recipe.begin:
        plain["begin"] = {kind: f"sha256 {sha256(Path(recipe.begin) / f'{kind}.safetensors')}"
                          for kind in ("vqgan", "clip")}  # fmt: skip
    if recipe.clip.texts:
        plain["clip"]["texts"] = f"sha256 {sha256(Path(recipe.clip.texts) / 'clip.safetensors')}"
    return {**plain, "commit": asked.stdout.strip() or "unknown", "torch": str(torch.__version__),
            "pytorch_lightning": pl.__version__, "numpy": np.__version__}  # fmt: skip


def train(recipe: DictConfig) -> None:
    """All of it, and the pair written to `recipe.out`."""
    keep_freed()
    pl.seed_everything(recipe.seed)
    if recipe.precision == "auto":
        device = torch.device("cuda" if on_a_card(recipe) else "cpu")
        recipe.precision = "bf16-mixed" if multiplies_bfloat16(device) else "32-true"
    scenes = rendered(Path(recipe.folder), recipe.scenes, processes=recipe.processes, of=scattered)
    kept = recipe.begin and not recipe.sharper.again
    painting = kept_vqgan(recipe, scenes[0]) if kept else train_vqgan(recipe, scenes[0])
    if recipe.begin and not recipe.clip.steps:
        clip, vocabulary = kept_clip(recipe)
    else:
        judging = train_clip(recipe, scenes, painting)
        clip, vocabulary = judging.clip.cpu(), judging.vocabulary
    if recipe.begin:
        before = Path(recipe.clip.texts or recipe.begin)
        stay_near(clip, load_file(before / "clip.safetensors"), recipe.clip.kept)
    if recipe.clip.texts:
        say_as(clip, vocabulary, Path(recipe.clip.texts) / "clip.safetensors")
    else:
        guide(clip, some_captions(vocabulary), recipe.clip.guidance)
    if recipe.texts.steps:
        put_right(clip, vocabulary, painting.cpu(), recipe)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    if kept:
        for end in ("safetensors", "yaml"):
            shutil.copy(Path(recipe.begin) / f"vqgan.{end}", out)
    else:
        patches = Mosaic(painting).leads.view(-1, 3, painting.f, painting.f)
        export_vqgan(painting.painter, patches, OmegaConf.to_container(recipe.vqgan.ddconfig), out, provenance(recipe))
    export_clip(clip, vocabulary.ids, out, provenance(recipe))


if __name__ == "__main__":
    train(read_recipe(sys.argv[1:]))
