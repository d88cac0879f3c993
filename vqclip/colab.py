"""What only Google Colab has: Drive, and handing a file to the browser. Nothing else here imports `google.colab`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DRIVE = Path("/content/drive")  # where Colab's own cells mount it


def in_colab() -> bool:
    """Whether this runs in Colab; importing nothing of it."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def drive(folder: str = "vqclip") -> Path:
    """Mount the user's Drive, which asks for consent, and return the folder in it that is ours.

    Raises:
        ValueError: it was not allowed, or this Colab has none; says what to do.
    """
    from google.colab import drive as colab_drive

    try:
        colab_drive.mount(str(DRIVE))
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"Drive was not mounted ({error}): allow it, or untick Drive and keep the picture here only "
                         "as long as this machine lasts") from error  # fmt: skip
    return DRIVE / "MyDrive" / folder


def download(path: str | Path) -> None:
    """Hand a file to the browser. Colab sends it once no cell runs."""
    from google.colab import files

    files.download(str(path))
