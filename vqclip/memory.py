"""Memory: what a step needs, what there is, and whether that was what an error was about.

The need is counted, not guessed: the networks of a run go through one step on torch's meta device, where tensors have
shapes and no values, while autograd tells what it would keep for the way back. That takes a moment and no memory, and
holds for every architecture. What autograd does not know of, gradients on their way and copies that kernels make, is
an allowance, fitted to peaks that were measured on a CPU with a full-size pair (imagenet_f16_16384, ViT-B/32) and one
thread, at 128x128 and 256x256 with 32 cutouts, 256x256 and 384x384 with 8: .92 to 1.00 of what is said in float32; with
a painter that keeps little .84 at 512x512. In bfloat16, on a processor with AMX, a step takes .99 at 512x512 with 32
cutouts, 1.14 at 384x384 with 8, 1.1 to 1.6 at 256x256: some 200 MB more that were freed in pieces and lie there. On a
graphics card less than .8 of it was measured, and .8 GiB of the driver's besides.
"""

from __future__ import annotations

import copy
import ctypes
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .cutouts import Cutouts
from .decoder import decode
from .losses import PromptLoss
from .ops import again

if TYPE_CHECKING:
    from .run import Run
    from .vqgan import VQGAN

PAINTER, JUDGES = 1.65, 1.75  # what each takes at its height, as a multiple of what autograd keeps of it
# A painter whose gradients go back patch by patch keeps nothing, and has this share of it at one time while it paints:
# on the shipped one at 512x512 .74 in float32 and .56 in bfloat16 (486 and 182 MB), at 256x256 .9 in bfloat16 (55 MB).
FORWARD = 0.8
# Bytes of a step for each pixel that is painted or judged, as `needed` counts them: of the catalogue gumbel_f8 takes
# most at 1024x1024 (17 KiB, others 9), and RN50x64 (16; ViT-B/32 less than 1); of open_clip's judges ViT-bigG-14, 40.
PIXEL = 48 << 10
PLAIN = 1024**2  # pixels: in larger pictures a painter's attention, which grows by their square, takes more than that
SIXTEEN = 0.5  # of a judge's memory in sixteen bits, by what ViT-B/32 keeps; larger ones keep .37 to .4

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, as malloc.h has them
_EVERYTHING = 2**31 - 1  # bytes, as much as it takes
_LARGEST = 32 << 20  # bytes of the largest blocks that glibc comes to keep by itself

_EXHAUSTED = re.compile(r"can't allocate memory|not enough memory|out of memory|ALLOC_FAILED", re.IGNORECASE)


@dataclass(frozen=True)
class Need:
    """What a run takes, in bytes.

    Attributes:
        weights: of painter and judges, which are there for as long as the run.
        painter: what the painter keeps for its way back, or has at a time where it keeps nothing.
        judges: what the judges keep at one time, with their cutouts.
        sparing: whether the painter keeps little and computes the rest again.
        at_once: cutouts judged at a time, where that is not all of them.
    """

    weights: int
    painter: int
    judges: int
    sparing: bool = False
    at_once: int = 0

    @property
    def step(self) -> int:
        """At the height of a step, besides the weights."""
        return round(PAINTER * self.painter + JUDGES * self.judges)


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory ran out: a graphics card's, a processor's, or in a library of either."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_EXHAUSTED.search(str(error)))


def keep_freed(keep: bool = True) -> None:
    """Have this program keep blocks of memory that are freed for the next ones, instead of giving them back each time.

    Left to itself the C library of most Linuxes takes every block of 32 MiB or more from the system anew, which clears
    it page by page, and hands it back as soon as it is freed; a step has many of them. What is kept lies in pieces, so
    up to two fifths more is needed; `give_back` is for the end. On other systems nothing changes.

    Args:
        keep: or not, as the C library has it by itself.
    """
    if mallopt := getattr(_library(), "mallopt", None):
        mallopt(_TRIM_THRESHOLD, _EVERYTHING if keep else 2 * _LARGEST)
        mallopt(_MMAP_THRESHOLD, _EVERYTHING if keep else _LARGEST)


def give_back() -> None:
    """Hand memory that is kept and not in use back to the system."""
    if trim := getattr(_library(), "malloc_trim", None):
        trim(0)


def _library() -> ctypes.CDLL | None:
    """The C library of this program, on Linux."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def free(device: torch.device) -> int | None:
    """Bytes that can be had on a device now, with what this program could give back; None where nobody can tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    give_back()
    return _of_machine()


def _of_machine(info: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What Linux has left: of the machine, or of the share that a container has of it; None elsewhere."""
    try:
        available = int(re.search(r"^MemAvailable:\s+(\d+) kB", info.read_text(), re.MULTILINE)[1]) * 1024
        limit = group / "memory.max"
        most = limit.read_text().strip() if limit.is_file() else "max"
        if most == "max":
            return available
        used = int((group / "memory.current").read_text())
        cached = int(re.search(r"^file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)[1])  # files' pages
        return min(available, int(most) - used + cached)
    except (OSError, ValueError, TypeError):
        return None


def room(run: Run) -> float:
    """For how many steps at a time there is memory, as far as anybody can tell; infinite where nobody can, and where
    there is plenty."""
    there = free(run.latent.z.device)
    return math.inf if there is None or plenty(run, there) else there / max(needed(run).step, 1)


def plenty(run: Run, there: int) -> bool:
    """Whether so many bytes are enough for two steps by a rule of thumb that is far on the safe side.

    Then what one takes need not be counted: to count on meta torch loads its compiler, which takes longer than all else
    before the shipped pair's first picture.
    """
    painted = math.prod(run.latent.vqgan.whole(*run.settings.size))
    judged = sum(judge.cutouts.n * judge.cutouts.size**2 for _, judge in run.judges())
    return painted <= PLAIN and there >= 2 * PIXEL * (painted + judged)


def needed(run: Run, size: tuple[int, int] | None = None, chunk: int = 0) -> Need:
    """What a run takes at its height.

    Args:
        size: of the picture, as if it were another; None takes the run's own.
        chunk: cutouts judged at once, as if it were another number; 0 takes the run's own.
    """
    painter, theirs = run.latent.vqgan, [judge for _, judge in run.judges()]
    hollow = on_meta(painter)
    w, h = painter.grid(*(size or run.settings.size))
    z = torch.empty(1, painter.codebook.shape[1], h, w, device="meta", requires_grad=True)
    image = torch.empty(1, 3, h * painter.f, w * painter.f, device="meta", requires_grad=True)
    whole, pieces, at_once = 0, [0], 0
    for judge in theirs:
        n = min(chunk or judge.at_once, judge.cutouts.n)
        takes = _judged(judge, image, n)
        if n < judge.cutouts.n:
            pieces.append(takes)  # of which each is let go before the next
            at_once = max(at_once, n)
        else:
            whole += takes  # kept until the painter's turn
    models = (painter, *(judge.perceptor for judge in theirs))
    weights = sum(size_of(model) for model in models if isinstance(model, nn.Module))
    return Need(weights, _painted(hollow, z), whole + max(pieces), painter.sparing, at_once)


def _painted(hollow: VQGAN, z: Tensor) -> int:
    """What a painter on meta takes for a latent."""
    z, largest = z.to(hollow.post_quant_conv.weight.dtype), 0

    def weighed(part: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, kept(lambda: part(h.detach().requires_grad_()), hollow))
        return again(part, h)

    through = weighed if hollow.sparing else None
    all_kept = kept(lambda: decode(hollow.decoder, hollow.post_quant_conv(z), through), hollow)
    return round((1.0 if hollow.patches is None else FORWARD) * (all_kept + largest))


def _judged(judge: PromptLoss, image: Tensor, n: int) -> int:
    """What n cutouts take on their way through a perceptor."""
    model, theirs = judge.perceptor, judge.cutouts
    cutouts = Cutouts(theirs.size, n, theirs.power, theirs.how, theirs.pooled)  # with draws of its own
    try:
        hollow = on_meta(model).float()  # as there is no autocast on meta
        takes = kept(lambda: hollow.encode_image(cutouts(image)), hollow)
    except Exception:  # nobody can tell what somebody's own perceptor does; it may be no module, or ask for values
        return kept(lambda: cutouts(image))
    return takes if getattr(model, "precision", torch.float32) == torch.float32 else round(takes * SIXTEEN)


def kept(compute: Callable[[], Any], besides: nn.Module | None = None) -> int:
    """Bytes that autograd keeps of a computation for its way back, the weights of a module apart."""
    mine = _tensors(besides).values() if besides else ()
    weights = {tensor.untyped_storage()._cdata for tensor in mine}
    storages: dict[int, Any] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage  # itself, so that no other gets its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.enable_grad():
        compute()
    return sum(storage.nbytes() for storage in storages.values())


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module whose tensors have shapes only; costs nothing."""
    # A tokenizer and other things beside the network are shared.
    hollow: dict[int, Any] = {id(value): value for value in vars(module).values() if not isinstance(value, dict)}
    hollow |= {id(tensor): tensor.to("meta") for tensor in _tensors(module).values()}
    for tensor in module.parameters():
        hollow[id(tensor)] = nn.Parameter(hollow[id(tensor)], requires_grad=False)
    return copy.deepcopy(module, hollow)


def size_of(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(module).values()}.values())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
