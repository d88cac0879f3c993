"""CLIP: the judge. Turns words and pictures into unit vectors whose angle says how well they agree.

The network and the tokenizer are OpenAI's own (Radford et al. 2021, arXiv 2103.00020), loaded straight from the
`openai-clip` package's files: importing that package itself needs `pkg_resources`, which setuptools 82 removed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checkpoints
from .ops import with_large_grad
from .tower import Attention, Last, Linear, Norm, Patches, QuickGELU, as_named, steepen

MEAN = 0.48145466, 0.4578275, 0.40821073  # of the pictures OpenAI trained on, red green blue
STD = 0.26862954, 0.26130258, 0.27577711
OPEN_CLIP = "open_clip:"  # how the names of its models begin
METADATA = "input_resolution", "context_length", "vocab_size"  # beside the weights in OpenAI's files


class Perceptor(Protocol):
    """What the loop asks of a judge: embed words and pictures into one space, as unit rows in float32."""

    name: str
    size: int  # S: cutouts are S x S pixels

    def encode_text(self, texts: list[str]) -> Tensor:
        """P texts -> (P, D)."""

    def encode_image(self, cutouts: Tensor) -> Tensor:
        """Cutouts (N, 3, S, S) in [0, 1] -> (N, D), with a gradient to the cutouts."""


@dataclass(frozen=True)
class Tokens:
    """How a text fits into the text tower.

    Attributes:
        ids: BPE ids, start and end marks included, at most `context` of them.
        context: how many fit (77).
        cut: the end of the text, for which there was no room; empty when all of it fits.
        unknown: the words that the model never met in training.
    """

    ids: tuple[int, ...]
    context: int
    cut: str = ""
    unknown: tuple[str, ...] = ()


@lru_cache
def openai_clip(stem: str) -> ModuleType:
    """The file `clip/{stem}.py` of the installed openai-clip package, as a module of our own name."""
    name = f"vqclip._openai_clip_{stem}"
    path = Path(importlib.util.find_spec("clip").submodule_search_locations[0]) / f"{stem}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@lru_cache
def tokenizer():
    """OpenAI's byte-pair tokenizer (49,408 tokens)."""
    return openai_clip("simple_tokenizer").SimpleTokenizer()


class CLIP(nn.Module):
    """OpenAI's CLIP as a perceptor.

    Args:
        network: `clip.model.CLIP`, in float32.
        name: what it is called in losses and sessions.
        vocabulary: the token ids it was trained on; None means all of them.
        precision: what the towers compute in; embeddings come out in float32 always.
        size: S; None takes the network's own.
        mean, std: of the colours it was trained on.
    """

    def __init__(self, network: nn.Module, name: str, vocabulary: Tensor | None = None,
                 precision: torch.dtype = torch.float32, size: int | None = None,
                 mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD):  # fmt: skip
        super().__init__()
        self.network, self.name, self.precision = network, name, precision
        self.size: int = size or network.visual.input_resolution
        self.sha256: str | None = None
        self.vocabulary = None if vocabulary is None else frozenset(vocabulary.tolist())
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text: how many are used, what was cut off, which words are unknown."""
        bpe, context = tokenizer(), self.network.context_length
        start, end = bpe.encoder["<|startoftext|>"], bpe.encoder["<|endoftext|>"]
        ids = bpe.encode(text)
        room = context - 2
        unknown = dict.fromkeys(
            word
            for word in text.split()
            if self.vocabulary is not None and not self.vocabulary.issuperset(bpe.encode(word))
        )
        return Tokens((start, *ids[:room], end), context, bpe.decode(ids[room:]).strip(), tuple(unknown))

    def encode_text(self, texts: list[str]) -> Tensor:
        """P texts -> unit rows (P, D). Warns about words this model never learnt and about text cut off."""
        read = [self.tokens(text) for text in texts]
        for tokens in read:
            if tokens.unknown:
                named = ", ".join(tokens.unknown[:9]) + " ..." * (len(tokens.unknown) > 9)
                warnings.warn(f"{self.name} never learnt {named}: such words paint nothing", stacklevel=2)
            if tokens.cut:
                warnings.warn(f"{self.name} reads {tokens.context} tokens; this was cut off: {tokens.cut[:60]!r}",
                              stacklevel=2)  # fmt: skip
        with torch.no_grad(), self._autocast():
            embedded = self.network.encode_text(self._rows(texts, read).to(self.mean.device))
        return F.normalize(embedded.float(), dim=1)

    def encode_image(self, cutouts: Tensor) -> Tensor:
        """Cutouts (N, 3, S, S) in [0, 1] -> unit rows (N, D), float32."""
        return F.normalize(with_large_grad(self._look, cutouts) if self.precision == torch.float16
                           else self._look(cutouts), dim=1)  # fmt: skip

    def _look(self, cutouts: Tensor) -> Tensor:
        with self._autocast():
            mean, std = self.mean.to(cutouts), self.std.to(cutouts)
            return self._embed((cutouts - mean) / std).float()

    def _embed(self, pictures: Tensor) -> Tensor:
        # OpenAI's `encode_image` brings pictures to float32, which for sixteen bits is there and back for nothing.
        tower = self.network.encode_image if self.precision == torch.float32 else self.network.visual
        return tower(pictures)

    def _rows(self, texts: list[str], read: list[Tokens]) -> Tensor:
        """What the text tower takes: (P, 77), zeros behind the end."""
        batch = torch.zeros(len(read), self.network.context_length, dtype=torch.long)
        for row, tokens in zip(batch, read, strict=True):
            row[: len(tokens.ids)] = torch.tensor(tokens.ids)
        return batch

    def _autocast(self):
        device = self.mean.device.type
        if device == "meta":  # for counting, see memory.py; torch has no autocast there
            return contextlib.nullcontext()
        return torch.autocast(device, self.precision, enabled=self.precision != torch.float32)


def load_clip(source: str | Path = "embedded", device: str | torch.device = "cpu",
              precision: torch.dtype = torch.float32, root: str | Path = ".") -> CLIP:  # fmt: skip
    """Load one of OpenAI's CLIPs, the small one that is shipped, or one of open_clip's, as a perceptor.

    Args:
        source: "embedded"; a path (.pt as OpenAI publishes it, or .safetensors with the same names); the name of a
            file in `root`; a name of the catalogue, such as "ViT-B/32", which is fetched if it is not there; or
            "open_clip:" and what `openclip.load_open_clip` takes.
        device: where it shall live.
        precision: what its towers compute in; see `precision.dtypes`.
        root: the folder in which checkpoints are looked for by name, and into which they are fetched.
    Raises:
        CheckpointError: the file is not there and cannot be fetched, or is not a CLIP.
    """
    if str(source).startswith(OPEN_CLIP):
        from .openclip import load_open_clip

        return load_open_clip(str(source), precision, root).to(device)
    path = checkpoints.find(source, root, "clip")
    _, weights = read_clip(path)
    clip = build_clip(weights, str(source), precision, path)
    clip.sha256 = checkpoints.sha256(path)
    return clip.to(device)


def read_clip(path: Path, _: dict | None = None) -> tuple[dict, dict[str, Tensor]]:
    """What judging needs of a checkpoint: ({}, its tensors under OpenAI's names, mapped from the disk).

    Raises:
        CheckpointError: it is not one of OpenAI's CLIP models, or not whole; says which tensor does not fit.
    """
    weights = {key: value for key, value in checkpoints.read_weights(path).items() if key not in METADATA}
    _blank(weights, path)
    return {}, weights


def build_clip(weights: dict[str, Tensor], name: str, precision: torch.dtype = torch.float32,
               path: Path = Path("it")) -> CLIP:  # fmt: skip
    """A frozen `CLIP` from a state dict in OpenAI's names; its shapes tell which of their networks it is.

    A `vocab` tensor beside a shortened `token_embedding.weight` says which token each of its rows is; the others
    become zero, which is what an untrained word is worth.

    Args:
        path: where the weights are from, for messages.
    """
    network = _blank(weights, path)
    vocabulary = weights.get("vocab")
    weights = {key: value.detach() for key, value in _full(weights).items()}  # which are not to be changed
    weights = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    network.load_state_dict(weights, assign=True)
    for block in network.transformer.resblocks:
        block.attn_mask = network.build_attention_mask()  # in no state dict, so without values until now
    _cast_once(network.visual, precision)
    return CLIP(network.requires_grad_(False), name, vocabulary, precision).eval()


def _cast_once(tower: nn.Module, precision: torch.dtype) -> None:
    """Bring an image tower's products to what they compute in, once, where autocast would at every call.

    In sixteen bits they take an activation's factor, see `tower.steepen`. Norms stay, and the first convolution, whose
    format OpenAI's network takes for that of both towers.
    """
    if precision != torch.float32 and hasattr(tower, "transformer"):
        for block in tower.transformer.resblocks:
            steepen(block.mlp)
    for part in tower.modules():
        if part is not tower.conv1 and isinstance(part, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
            for weights in part.parameters():  # an attention's own projections and, again, those of its parts
                weights.data = weights.data.to(precision)
    if isinstance(getattr(tower, "proj", None), nn.Parameter):
        tower.proj.data = tower.proj.data.to(precision)


def _full(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with a row for every token: U learnt ones (U, width) become (49408, width) by their `vocab` (U,)."""
    weights = {key: value for key, value in weights.items() if key not in METADATA}
    vocabulary = weights.pop("vocab", None)
    if vocabulary is not None:
        rows = weights["token_embedding.weight"]
        full = rows.new_zeros(len(tokenizer().encoder), rows.shape[1])
        weights["token_embedding.weight"] = full.index_copy(0, vocabulary.long(), rows)
    return weights


def _blank(weights: dict[str, Tensor], path: Path) -> nn.Module:
    """The network that these weights belong to, on the meta device: without values, so at no cost."""
    try:
        shapes = {key: value.to("meta") for key, value in _full(weights).items()}
        with checkpoints.blank():
            network = openai_clip("model").build_model(shapes).float()  # strict in names and shapes
            if hasattr(network.visual, "transformer"):  # a ResNet has none
                _ours(network.visual)
            return network
    except (LookupError, RuntimeError, ValueError, ArithmeticError, AssertionError) as error:
        raise checkpoints.CheckpointError(
            f"{path} does not hold one of OpenAI's CLIP models ({' '.join(str(error).split())[:200]}): fetch it again"
        ) from error


def _ours(tower: nn.Module) -> None:
    """Put our own layers, see `tower.py`, where OpenAI's vision transformer has others of the same weights."""
    width, colours, size, _ = tower.conv1.weight.shape
    tower.conv1 = Patches(colours, width, size, stride=size, bias=False)
    tower.ln_pre, tower.ln_post = Norm(width), Norm(width)
    blocks = tower.transformer.resblocks
    for block in blocks:
        block.attn, block.mlp.gelu = Attention(width, block.attn.num_heads), QuickGELU()
        block.mlp.c_fc, block.mlp.c_proj = Linear(width, 4 * width), Linear(4 * width, width)
        block.ln_1, block.ln_2 = Norm(width), Norm(width)
    blocks[-1] = Last(blocks[-1])
    tower.transformer.register_forward_pre_hook(as_named)
