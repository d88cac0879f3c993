"""Make the embedded pair: `python -m training.train [key=value ...]`, keys as in recipe.yaml.

Four stages, each resumed where it stopped: the VQGAN on spoilt codes; the VQGAN on nearly right ones; the CLIP on
mosaics of codes; the CLIP on what the VQGAN makes of them. Runs unchanged on a CPU or a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from vqclip.files import atomic

from .data import rendered
from .export import export_clip, export_vqgan
from .train_clip import Captioned, JudgesTraining, Mosaic, repaint
from .train_vqgan import Crops, PaintersTraining

RECIPE = Path(__file__).parent / "recipe.yaml"


def read_recipe(changes: list[str]) -> DictConfig:
    """The recipe with `key=value` changes; raises KeyError for a key that it has not."""
    recipe = OmegaConf.load(RECIPE)
    OmegaConf.set_struct(recipe, True)
    recipe.merge_with_dotlist(changes)
    return recipe


def fit(module: pl.LightningModule, batches, recipe: DictConfig, name: str, steps: int, optimizers: int = 1) -> None:
    """Train until `steps`, from the last checkpoint of that name if there is one.

    Args:
        batches: gives the data from a step on: `batches(skip)`.
        optimizers: how many steps Lightning counts for one batch.
    """
    folder = Path(recipe.folder) / name
    last = folder / "last.ckpt"
    done = torch.load(last, map_location="cpu", weights_only=False)["global_step"] // optimizers if last.exists() else 0
    if done >= steps:
        module.load_state_dict(torch.load(last, map_location="cpu", weights_only=False)["state_dict"])
        return
    keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=recipe.save_every * optimizers)
    trainer = pl.Trainer(
        max_steps=steps * optimizers, max_epochs=-1, accelerator=recipe.accelerator, devices=1,
        precision=recipe.precision, callbacks=[keep], logger=CSVLogger(folder, "curves"), log_every_n_steps=25,
        gradient_clip_val=1.0 if optimizers == 1 else None, enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
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
        fit(painting, lambda skip: Crops(pictures, v.batch, v.crop, recipe.seed + number, skip), recipe, name, c.steps,
            2)  # fmt: skip
        return painting

    return stage("sharper", 1, stage("vqgan", 0))


def train_clip(recipe: DictConfig, pictures: np.ndarray, painting: PaintersTraining) -> JudgesTraining:
    """The judge: first against mosaics of spoilt codes, then against what the painter makes of them."""
    network = OmegaConf.to_container(recipe.clip.network)
    network["vision_layers"] = tuple(network["vision_layers"])
    mosaic = Mosaic(painting)

    def stage(name: str, number: int, before: JudgesTraining | None = None, painted=None) -> JudgesTraining:
        c = recipe[name]
        judging = JudgesTraining(network, c.lr, c.steps, c.weight_decay, c.pointing, mosaic, recipe.seed + number)
        if before is not None:
            judging.load_state_dict(before.state_dict())
        fit(judging, lambda skip: Captioned(pictures, c.batch, recipe.seed + number, skip, painted), recipe, name,
            c.steps)  # fmt: skip
        return judging

    first = stage("clip", 0)
    kept = Path(recipe.folder) / f"painted-{recipe.painted.scenes}.npy"
    if not kept.exists():
        both = repaint(painting, mosaic, np.asarray(pictures[: recipe.painted.scenes]), recipe.seed)
        with atomic(kept) as file:
            np.save(file, np.stack(both))
    return stage("painted", 1, first, np.load(kept, mmap_mode="r"))


def provenance(recipe: DictConfig) -> dict:
    """What made the weights: the recipe, versions, the commit."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RECIPE.parent)
    plain = OmegaConf.to_container(recipe)
    plain = {key: value for key, value in plain.items() if key not in ("folder", "out", "processes")}
    return {**plain, "commit": asked.stdout.strip() or "unknown", "torch": str(torch.__version__),
            "pytorch_lightning": pl.__version__, "numpy": np.__version__}  # fmt: skip


def train(recipe: DictConfig) -> None:
    """All of it, and the pair written to `recipe.out`."""
    pl.seed_everything(recipe.seed)
    pictures = rendered(Path(recipe.folder), recipe.scenes, processes=recipe.processes)
    painting = train_vqgan(recipe, pictures)
    judging = train_clip(recipe, pictures, painting)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    export_vqgan(painting.painter, OmegaConf.to_container(recipe.vqgan.ddconfig), out, provenance(recipe))
    export_clip(judging.clip, judging.vocabulary.ids, out, provenance(recipe))


if __name__ == "__main__":
    train(read_recipe(sys.argv[1:]))
