"""Write the trained pair as the package loads it: float16 safetensors under the published names, YAML beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from vqclip.checkpoints import write_weights
from vqclip.perceptor import MEAN, STD

from .captions import LANGUAGES


def _halves(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floats as float16; BatchNorm's counters are of no use to anyone and left out."""
    return {
        key: value.detach().half() if value.is_floating_point() else value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }


def export_vqgan(painter, patches: Tensor, ddconfig: dict, folder: Path, recipe: dict) -> None:
    """`vqgan.safetensors` and `vqgan.yaml` of a `train_vqgan.Painter`, laid out as CompVis' checkpoints.

    Besides those stand patches (C, 3, f, f): how its latents follow its pictures; see `vqclip.ops.patch_grad`.
    """
    write_weights(_halves({**painter.state_dict(), "patches": patches}), folder / "vqgan.safetensors")
    book = painter.quantize.embedding.weight
    params = {"embed_dim": book.shape[1], "n_embed": book.shape[0], "ddconfig": dict(ddconfig),
              "patches": True}
    OmegaConf.save({"model": {"target": "taming.models.vqgan.VQModel", "params": params}, "recipe": recipe},
                   folder / "vqgan.yaml")  # fmt: skip


@torch.no_grad()
def guide(clip, rows: Tensor, share: float) -> None:
    """Take a share of the mean embedding of texts out of whatever an OpenAI `CLIP` reads from now on.

    The gradient of a likeness is linear in the text's embedding. So what all captions ask for counts less, and what
    this one asks for more: classifier-free guidance of 1 / (1 - share) (Ho and Salimans 2022, arXiv 2207.12598), at
    no cost. A shift before the projection does it.

    Args:
        rows: the texts, (T, context).
        share: from 0, which changes nothing, to less than 1.
    """
    mean = clip.encode_text(rows).float().mean(0)  # (D,)
    clip.ln_final.bias -= share * mean @ torch.linalg.pinv(clip.text_projection)


def export_clip(clip, vocabulary: Tensor, folder: Path, recipe: dict) -> None:
    """`clip.safetensors` and `clip.yaml` of an OpenAI `CLIP` whose vocabulary is cut to the rows `vocabulary`."""
    state = _halves(clip.state_dict())
    state["vocab"] = vocabulary.to(torch.int32)
    write_weights(state, folder / "clip.safetensors")
    about = {"name": "embedded", "size": clip.visual.input_resolution, "mean": list(MEAN), "std": list(STD),
             "languages": list(LANGUAGES), "context": clip.context_length, "recipe": recipe}  # fmt: skip
    OmegaConf.save(about, folder / "clip.yaml")
