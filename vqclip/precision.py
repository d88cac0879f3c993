"""Which number format each half computes in: decided by what the device can do, not by its name.

    dtypes("auto", able(torch.device("cuda")))      # Dtypes(painter=torch.float32, judge=torch.bfloat16) on an A100

The painter is float32 everywhere: float16 overflows in a VQGAN's decoder, and a video that is decoded elsewhere later
shall show what was painted. The judge, where most of the time goes, is taken down to sixteen bits where these are fast.
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
        bfloat16, float16: whether it has that format. Emulation does not count: it is slower than float32.
    """

    kind: str
    name: str
    bfloat16: bool
    float16: bool


@dataclass(frozen=True)
class Dtypes:
    """What the two halves compute in; weights, latents, embeddings and losses are float32 always."""

    painter: torch.dtype
    judge: torch.dtype


def able(device: torch.device) -> Able:
    """Ask a device what it can do."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            # Without the argument torch says yes for a T4, which has no such arithmetic.
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Able("cuda", torch.cuda.get_device_name(device), native, True)
    if device.type == "mps":
        return Able("mps", "this Mac's graphics", torch.backends.mps.is_macos_or_newer(14, 0), True)
    # Processors take bfloat16 one way or another; float16 has no fast path on most, and little range on all.
    return Able(device.type, "the processor", True, False)


def dtypes(wanted: str, able: Able) -> Dtypes:
    """What to compute in.

    Args:
        wanted: "float32", "bfloat16" or "float16", which is what the judge gets, or "auto": sixteen bits on CUDA
            (bfloat16 where it is native, as from Ampere on, else float16, as on a T4), float32 on processors and Macs.
    Raises:
        SettingsError: the device has no such arithmetic.
    """
    if wanted == "auto":
        wanted = "float32" if able.kind != "cuda" else "bfloat16" if able.bfloat16 else "float16"
    if wanted != "float32" and not getattr(able, wanted):
        raise SettingsError(f"precision={wanted}: {able.name} does not compute in {wanted}; choose auto")
    return Dtypes(torch.float32, getattr(torch, wanted))
