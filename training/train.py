"""Make the embedded pair: `python -m training.train [key=value ...]`, keys as in recipe.yaml.

Three stages, each resumed where it stopped: the VQGAN on spoilt codes; the VQGAN on nearly right ones; the CLIP. Runs
unchanged on a CPU or a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file
from torch import Tensor

from vqclip.files import atomic, sha256

from .captions import caption
from .data import rendered
from .export import export_clip, export_vqgan, guide
from .kin import FAMILIES, SIZE, kin
from .scenes import scattered, scene, things
from .train_clip import Captioned, JudgesTraining, Mosaic, repaint, show
from .train_vqgan import Crops, PaintersTraining
from .walkers import Walkers

RECIPE = Path(__file__).parent / "recipe.yaml"


def read_recipe(changes: list[str]) -> DictConfig:
    """The recipe with `key=value` changes; raises KeyError for a key that it has not."""
    recipe = OmegaConf.load(RECIPE)
    OmegaConf.set_struct(recipe, True)
    recipe.merge_with_dotlist(changes)
    return recipe


def fit(module: pl.LightningModule, batches, recipe: DictConfig, name: str, steps: int) -> None:
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
        precision=recipe.precision, callbacks=[keep], logger=CSVLogger(folder, "curves"), log_every_n_steps=25,
        enable_model_summary=False, enable_progress_bar=sys.stderr.isatty(),
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(batches(done), batch_size=None)
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=False)
    trainer.save_checkpoint(last)


def train_vqgan(recipe: DictConfig, pictures: np.ndarray) -> PaintersTraining:
    """The painter: first on codes of which many are wrong, then, sharper, on few."""
    v = recipe.vqgan
    ddconfig = OmegaConf.to_container(v.ddconfig)

    def stage(name: str, number: int, before: PaintersTraining | None = None) -> PaintersTraining:
        c = recipe[name]
        painting = PaintersTraining(ddconfig, v.n_embed, v.embed_dim, c.lr, c.steps, c.wrong, c.jitter, c.critic_from,
                                    c.critic_share, recipe.seed + number)  # fmt: skip
        if before is not None:
            painting.load_state_dict(before.state_dict())
        elif not (Path(recipe.folder) / name / "last.ckpt").exists():
            painting.fit_codes(pictures, v.patches, v.rounds, recipe.seed)
        fit(painting, lambda skip: Crops(pictures, v.batch, v.crop, recipe.seed + number, skip), recipe, name, c.steps)
        return painting

    return stage("sharper", 1, stage("vqgan", 0))


def repainted(recipe: DictConfig, pictures: np.ndarray, painting: PaintersTraining) -> dict[str, np.ndarray]:
    """All that `repaint` makes for the recipe, from `recipe.folder` or painted there now, chunk by chunk.

    Beside its arrays stands `odds` (N,): how often each picture is to be drawn.
    """
    chunks, mosaic, side = [], Mosaic(painting), recipe.clip.chunk
    everything = np.arange(len(pictures))
    with_things = np.array([k for k in everything if scattered(k).objects])
    for kind, count in recipe.clip.chunks.items():
        order = with_things if kind in ("bare", "bent") else everything
        for k in range(count):
            path = Path(recipe.folder) / f"painted-{kind}-{k}.npz"
            if not path.exists():
                scenes = order[np.arange(k * side, (k + 1) * side) % len(order)]
                with atomic(path) as file:
                    np.savez(file, **repaint(painting, mosaic, pictures, scenes, recipe.seed + len(chunks), kind))
            with np.load(path) as stored:
                chunks.append({name: stored[name] for name in ("scene", "picture", "share")})
            chunks[-1]["odds"] = np.full(side, recipe.clip.drawn[kind] / (count * side))
    made = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return {**made, "odds": made["odds"] / made["odds"].sum()}


def train_clip(recipe: DictConfig, pictures: np.ndarray, painting: PaintersTraining) -> JudgesTraining:
    """The judge: against mosaics of spoilt codes, and then also against what the painter makes of them."""
    c, network = recipe.clip, OmegaConf.to_container(recipe.clip.network)
    torch.manual_seed(recipe.seed)
    walkers = Walkers(partial(show, painting), Mosaic(painting), c.walkers.count, pictures.shape[1] // painting.f,
                      c.walkers.length)  # fmt: skip
    judging = JudgesTraining(network, c.lr, c.steps, c.weight_decay, c.pointing, walkers, recipe.seed, c.compiled)
    if c.begin:
        begin_with(judging, Path(c.begin))
    painted = partial(repainted, recipe, pictures, painting)
    walking = c.walkers.count, c.walkers.length, c.walkers.each
    paint = partial(rendered, Path(recipe.folder), processes=recipe.processes)
    where = paint(len(pictures), of=scattered, what=things)
    count = c.kin * len(FAMILIES) * SIZE
    relatives = paint(count, of=kin), paint(count, of=kin, what=things)
    fit(judging, lambda skip: Captioned(pictures, where, relatives, c.batch, recipe.seed, painted, c.painted_from,
                                        c.painted, walking, c.walking_from, skip), recipe, "clip", c.steps)  # fmt: skip
    return judging


def begin_with(judging: JudgesTraining, path: Path) -> None:
    """Take the weights of a CLIP that was shipped, without the guidance that it was given."""
    weights = load_file(path)
    if not weights.pop("vocab").equal(judging.vocabulary.ids):
        raise SystemExit(f"{path} knows other words than these captions are made of: train one from nothing")
    judging.clip.load_state_dict({name: value.float() for name, value in weights.items()})
    share = OmegaConf.load(path.with_suffix(".yaml")).recipe.clip.guidance
    guide(judging.clip, some_captions(judging), -share / (1 - share))


def some_captions(judging: JudgesTraining) -> Tensor:
    """Captions (1000, context) of the first scenes, the same for ever."""
    rng = np.random.default_rng(0)
    texts = [caption(scene(k), rng)[0] for k in range(1000)]
    return judging.vocabulary.encode(texts, judging.clip.context_length)


def provenance(recipe: DictConfig) -> dict:
    """What made the weights: the recipe, versions, the commit."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RECIPE.parent)
    plain = OmegaConf.to_container(recipe)
    plain = {key: value for key, value in plain.items() if key not in ("folder", "out", "processes")}
    if recipe.clip.begin:
        plain["clip"]["begin"] = f"sha256 {sha256(recipe.clip.begin)}"
    return {**plain, "commit": asked.stdout.strip() or "unknown", "torch": str(torch.__version__),
            "pytorch_lightning": pl.__version__, "numpy": np.__version__}  # fmt: skip


def train(recipe: DictConfig) -> None:
    """All of it, and the pair written to `recipe.out`."""
    pl.seed_everything(recipe.seed)
    pictures = rendered(Path(recipe.folder), recipe.scenes, processes=recipe.processes, of=scattered)
    painting = train_vqgan(recipe, pictures)
    judging = train_clip(recipe, pictures, painting)
    guide(judging.clip, some_captions(judging), recipe.clip.guidance)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    patches = Mosaic(painting).leads.view(-1, 3, painting.f, painting.f)
    export_vqgan(painting.painter, patches, OmegaConf.to_container(recipe.vqgan.ddconfig), out, provenance(recipe))
    export_clip(judging.clip, judging.vocabulary.ids, out, provenance(recipe))


if __name__ == "__main__":
    train(read_recipe(sys.argv[1:]))
