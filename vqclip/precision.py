"""Which number format each half computes in: decided by what the device can do, not by its name.

    dtypes("auto", able(torch.device("cuda")))      # Dtypes(painter=torch.bfloat16, judge=torch.bfloat16) on an A100

Both halves are taken down to sixteen bits where these are fast. For the painter that is bfloat16 or nothing: float16
overflows in a VQGAN's decoder. The latent, its codes, the picture, losses and all that is kept are float32 always.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .settings import SettingsError


@dataclass(frozen=True)
class Able:
    """What a device computes with in hardware.

    Attributes:
        kind: "cpu", "cuda" or "mps".
        name: for people, such as "Tesla T4".
        bfloat16, float16: whether it has that format. On a graphics card emulation does not count: it is slower than
            float32.
        fast: the format that pays, which is what "auto" takes.
    """

    kind: str
    name: str
    bfloat16: bool
    float16: bool
    fast: str = "float32"


@dataclass(frozen=True)
class Dtypes:
    """What the two halves compute in; latents, pictures, embeddings and losses are float32 always."""

    painter: torch.dtype
    judge: torch.dtype


def able(device: torch.device) -> Able:
    """Ask a device what it can do."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            # Without the argument torch says yes for a T4, which has no such arithmetic.
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Able("cuda", torch.cuda.get_device_name(device), native, True, "bfloat16" if native else "float16")
    if device.type == "mps":
        return Able("mps", "this Mac's graphics", torch.backends.mps.is_macos_or_newer(14, 0), True)
    # Processors take bfloat16 one way or another, but it pays only where they have it in hardware; float16 has no fast
    # path on most, and little range on all.
    return Able(device.type, "the processor", True, False, "bfloat16" if has("avx512_bf16", "amx_tile") else "float32")


def has(*instructions: str) -> bool:
    """Whether the processor has any of these, such as "avx512_bf16" and "amx_tile", as far as this torch can tell."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in instructions)
    return any(ask() for ask in asked if ask is not None)


def dtypes(wanted: str, able: Able) -> Dtypes:
    """What to compute in.

    Args:
        wanted: "float32", "bfloat16" or "float16", or "auto": what is fast. On CUDA that is bfloat16 where it is
            native, as from Ampere on, else float16, as on a T4; on a processor bfloat16 where it has AVX512-BF16 or
            AMX, else float32; on a Mac float32. The painter gets bfloat16 where the judge does, else float32.
    Raises:
        SettingsError: the device has no such arithmetic.
    """
    if wanted == "auto":
        wanted = able.fast
    if wanted != "float32" and not getattr(able, wanted):
        raise SettingsError(f"precision={wanted}: {able.name} does not compute in {wanted}; choose auto")
    judge = getattr(torch, wanted)
    return Dtypes(torch.bfloat16 if judge == torch.bfloat16 else torch.float32, judge)
