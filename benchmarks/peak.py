"""What one loop takes of memory at its height, in a process of its own: python -m benchmarks.peak ours full 512 32"""

import argparse
import os
import sys

import torch

from vqclip.memory import keep_freed

from .models import Models


def peak(side: str, kind: str, size: int, cutouts: int, precision: str, device: torch.device, sparing: bool) -> int:
    """Bytes at the height of two steps, the networks included: of the card, or of this process (on Linux)."""
    models = Models(kind, device)
    if side == "ours":
        run = models.run(size, cutouts, precision, chunk=8 if sparing else 0)
        run.latent.vqgan.sparing = sparing
        if sparing:
            keep_freed(False)
        for _ in range(2):
            next(run)
    else:
        iterate = models.reference(size, cutouts)
        for _ in range(2):
            iterate()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with open("/proc/self/status") as file:  # not getrusage, which hands the parent's height down
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("ours", "theirs"))
    parser.add_argument("kind", choices=("full", "small", "embedded"))
    parser.add_argument("size", type=int)
    parser.add_argument("cutouts", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sparing", action="store_true", help="ours as where memory is short, eight cutouts at once")
    asked = parser.parse_args()
    if sys.platform != "linux" and asked.device == "cpu":
        sys.exit("a process's height is read from /proc, which is Linux's: take a graphics card or another system")
    torch.set_num_threads(asked.threads)
    print(peak(asked.side, asked.kind, asked.size, asked.cutouts, asked.precision, torch.device(asked.device),
               asked.sparing))  # fmt: skip


if __name__ == "__main__":
    main()
