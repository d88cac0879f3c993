"""Contact sheets: many small pictures on a page, each with what was asked for under it."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vqclip.files import atomic_path

from .scenes import SIDE

LINES = 4


def sheet(path: Path, tiles: list[tuple[Path, str]], across: int = 12) -> None:
    """Write pictures and their captions, row by row, `across` of them in one."""
    font = _font(10)
    wide, high = SIDE + 8, SIDE + 8 + 12 * LINES
    page = Image.new("RGB", (across * wide, -(-len(tiles) // across) * high), "white")
    draw = ImageDraw.Draw(page)
    for k, (picture, caption) in enumerate(tiles):
        left, top = k % across * wide + 4, k // across * high + 4
        page.paste(Image.open(picture).convert("RGB").resize((SIDE, SIDE)), (left, top))
        lines = textwrap.fill(caption, 23, max_lines=LINES, placeholder=" …")
        draw.multiline_text((left, top + SIDE + 2), lines, "black", font, spacing=1)
    with atomic_path(path) as unfinished:
        page.save(unfinished, quality=88)


def _font(size: int):
    """DejaVu Sans has all four alphabets; Pillow's own font has no Cyrillic and shows boxes for it."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
