"""open_clip's judges, by name: other data, other languages, other networks than OpenAI's.

    open_clip:ViT-B-32/laion2b_s34b_b79k                  ARCHITECTURE/TAG, of all that `open_clip.list_pretrained` has
    open_clip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k reads a hundred languages
    open_clip:ViT-B-16-SigLIP/webli                       SigLIP (Zhai et al. 2023, arXiv 2303.15343)
    open_clip:ViT-B-32-quickgelu/trained/epoch_3.pt       a file of one's own, from where you are or from `root`
    open_clip:some/folder                                 a folder with open_clip_config.json, weights and tokenizer

Networks and tokenizers are open_clip's (Ilharco et al. 2021; Cherti et al. 2022, arXiv 2212.07143), an optional extra.
Weights are read as all others are: as data, strictly, and what was fetched is kept as safetensors only.

Each model has its own input size, colour mean and deviation. Whether it wants pictures squashed or cropped to a square
is all the same here, where every cutout is a square. SigLIP was trained with a sigmoid in place of the softmax, which
scales and shifts cosines; the angle that guides a picture is the same.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from .checkpoints import CheckpointError, read_weights, sha256, write_weights
from .download import offline
from .perceptor import CLIP, MEAN, METADATA, OPEN_CLIP, STD, Tokens

INSTALL = "pip install open_clip_torch transformers"
WEIGHTS = ".safetensors", ".bin", ".pt", ".pth"  # in a folder, the first that there is


@dataclass(frozen=True)
class Recipe:
    """What is needed to make a model.

    Attributes:
        path: of the weights.
        config: open_clip's description of the network.
        mean, std: of the colours.
        tokenizer: what `open_clip.get_tokenizer` takes.
    """

    path: Path
    config: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokenizer: str


class OpenCLIP(CLIP):
    """A model of open_clip as a perceptor.

    Args:
        network, name, precision, size, mean, std: as in `CLIP`.
        tokenizer: open_clip's, of its own byte pairs or around one of transformers.
    """

    def __init__(self, network: nn.Module, name: str, tokenizer, precision: torch.dtype, size: int,
                 mean: tuple[float, ...], std: tuple[float, ...]):  # fmt: skip
        super().__init__(network, name, None, precision, size, mean, std)
        self.tokenizer = tokenizer

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text: how many are used, what was cut off, which words are unknown."""
        context, ids = self.tokenizer.context_length, self._ids(text)
        inner = getattr(self.tokenizer, "tokenizer", None)  # one of transformers
        cut = (inner or self.tokenizer).decode(ids[context - 1 : -1]).strip() if len(ids) > context else ""
        unknown = dict.fromkeys(word for word in text.split() if inner and inner.unk_token_id in self._ids(word))
        return Tokens((*ids[: context - 1], ids[-1])[: len(ids)], context, cut, tuple(unknown))

    def _ids(self, text: str) -> list[int]:
        """All tokens of a text, however long, with start and end marks."""
        bpe = self.tokenizer
        if inner := getattr(bpe, "tokenizer", None):
            return inner(bpe.clean_fn(text), verbose=False)["input_ids"]
        return [bpe.sot_token_id, *bpe.encode(text), bpe.eot_token_id]

    def _rows(self, texts: list[str], read: list[Tokens]) -> Tensor:
        return self.tokenizer(texts)

    def _embed(self, pictures: Tensor) -> Tensor:
        return self.network.encode_image(pictures)


def load_open_clip(source: str, precision: torch.dtype = torch.float32, root: str | Path = ".") -> OpenCLIP:
    """Load a model of open_clip as a perceptor, on the CPU; see the top of this file for what `source` may be.

    Args:
        precision: what its towers compute in.
        root: the folder in which files are looked for, and in whose `open_clip` fetched weights are kept.
    Raises:
        CheckpointError: open_clip is not installed, knows no such model, the weights cannot be fetched, or they are of
            another network.
    """
    library, what = _library(source), source.removeprefix(OPEN_CLIP)
    recipe = _of_folder(Path(what)) if Path(what).is_dir() else _of_name(library, what, Path(root))
    network = _network(library, recipe, source)
    _fill(network, recipe, what)
    size = network.visual.image_size
    size = size if isinstance(size, int) else size[0]
    tokenizer = _tokenizer(library, recipe, source)
    clip = OpenCLIP(network.requires_grad_(False), source, tokenizer, precision, size, recipe.mean, recipe.std)
    clip.sha256 = sha256(recipe.path)
    return clip.eval()


def _library(source: str) -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise CheckpointError(f"clip={source!r} needs open_clip, which is not here ({error}): {INSTALL}") from error
    except RuntimeError as error:  # a torchvision of another torch
        raise CheckpointError(f"clip={source!r} needs open_clip, which cannot be loaded ({error}): install the "
                              f"torchvision that belongs to torch {torch.__version__}") from error  # fmt: skip
    return open_clip


def _of_folder(folder: Path) -> Recipe:
    """A folder as the Hugging Face hub has them."""
    try:
        described = json.loads((folder / "open_clip_config.json").read_text("utf-8"))
        config, preprocess = described["model_cfg"], described.get("preprocess_cfg", {})
        files = [path for path in folder.iterdir() if path.suffix in WEIGHTS]
        path = min(files, key=lambda path: (WEIGHTS.index(path.suffix), path.name))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder} is no model of open_clip ({error}): it should hold weights and "
                              "open_clip_config.json, with a model_cfg") from error  # fmt: skip
    mean, std = (tuple(preprocess.get(key, default)) for key, default in (("mean", MEAN), ("std", STD)))
    return Recipe(path, config, mean, std, f"local-dir:{folder}")


def _of_name(library: ModuleType, what: str, root: Path) -> Recipe:
    """ARCHITECTURE/TAG or ARCHITECTURE/FILE."""
    architecture, _, rest = what.partition("/")
    config = library.get_model_config(architecture)
    if config is None:
        near = difflib.get_close_matches(architecture, library.list_models(), n=1)
        raise CheckpointError(
            f"open_clip has no {architecture!r}{f', did you mean {near[0]!r}?' if near else ''}: write "
            "open_clip:ARCHITECTURE/TAG, as in open_clip:ViT-B-32/laion2b_s34b_b79k"
        )
    tags = library.list_pretrained_tags_by_model(architecture)
    known = [library.get_pretrained_cfg(architecture, tag) for tag in tags]
    for path in (Path(rest), root / rest):
        if path.is_file():
            colours = {(tuple(tag["mean"]), tuple(tag["std"])) for tag in known}
            mean, std = colours.pop() if len(colours) == 1 else (MEAN, STD)
            return Recipe(path, config, mean, std, architecture)
    tag = library.get_pretrained_cfg(architecture, rest)
    if not tag:
        raise CheckpointError(f"open_clip has no {rest!r} of {architecture}, and there is no such file: choose "
                              f"{', '.join(tags) or 'a file of your own'}")  # fmt: skip
    # The tag knows with which activation it was trained; the architecture's name may not say so.
    config["quick_gelu"] = bool(tag.get("quick_gelu") or config.get("quick_gelu"))
    path = _fetched(library, tag, root / "open_clip" / f"{architecture}-{rest}.safetensors")
    return Recipe(path, config, tuple(tag["mean"]), tuple(tag["std"]), architecture)


def _fetched(library: ModuleType, tag: dict[str, Any], kept: Path) -> Path:
    """The weights of a tag, fetched by open_clip if need be, kept as safetensors."""
    if kept.is_file():
        return kept
    if variable := offline():
        raise CheckpointError(f"{kept.name} is not in {kept.parent}, and {variable} forbids fetching it: unset that")
    cache = kept.with_suffix(".fetching")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.with_suffix(".lock")):
            if not kept.is_file():
                raw = Path(library.download_pretrained(tag, cache_dir=str(cache)))
                if raw.suffix == ".safetensors":
                    os.replace(raw.resolve(), kept)  # the hub's client gives a link to a file without suffix
                else:
                    write_weights(read_weights(raw), kept)
                shutil.rmtree(cache, ignore_errors=True)
    except CheckpointError:
        shutil.rmtree(cache, ignore_errors=True)  # what is damaged is not taken again
        raise
    except Exception as error:  # of the hub's client, of requests, of the disk, each with another class
        raise CheckpointError(f"{kept.stem} could not be fetched ({str(error).splitlines()[0]}): try again; what is "
                              f"there already is in {cache}") from error  # fmt: skip
    return kept


def _network(library: ModuleType, recipe: Recipe, source: str) -> nn.Module:
    """The network with weights that all are to be replaced."""
    config = {key: value for key, value in recipe.config.items() if key != "custom_text"}
    own_text = recipe.config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    kind = library.CoCa if "multimodal_cfg" in config else library.CustomTextCLIP if own_text else library.CLIP
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"] = config["text_cfg"] | {"hf_model_pretrained": False}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # nobody else's random numbers move
            warnings.simplefilter("ignore", FutureWarning)
            return kind(**config)
    except Exception as error:  # of timm or transformers, or of the hub, which has a text tower's description
        raise CheckpointError(f"the network of {source} cannot be made ({str(error).strip().splitlines()[0]}): check "
                              f"the connection, and {INSTALL}") from error  # fmt: skip


def _fill(network: nn.Module, recipe: Recipe, what: str) -> None:
    """Give a network its weights, every one of them."""
    from open_clip.convert import convert_state_dict
    from open_clip.factory import convert_to_custom_text_state_dict

    weights = {name.removeprefix("module."): weight for name, weight in read_weights(recipe.path).items()}
    weights = convert_state_dict(network, {name: weight for name, weight in weights.items() if name not in METADATA})
    if "positional_embedding" in weights and not hasattr(network, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    wanted = network.state_dict()
    for name in ("logit_scale", "logit_bias"):  # a number, or a list of one
        if name in weights and name in wanted:
            weights[name] = weights[name].reshape(wanted[name].shape)
    if "text.transformer.embeddings.position_ids" not in wanted:  # old versions of transformers counted it in
        weights.pop("text.transformer.embeddings.position_ids", None)
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{recipe.path} does not hold the weights of {what.partition('/')[0]} "
                              f"({' '.join(str(error).split())[:200]}): name the architecture it was trained "
                              "as") from error  # fmt: skip


def _tokenizer(library: ModuleType, recipe: Recipe, source: str):
    try:
        return library.get_tokenizer(recipe.tokenizer)
    except Exception as error:  # transformers is missing, or its files cannot be fetched
        raise CheckpointError(f"the tokenizer of {source} cannot be loaded ({str(error).strip().splitlines()[0]}): "
                              f"check the connection, and {INSTALL}") from error  # fmt: skip
