"""For people to look at: contact sheets, and pictures of which a blind reader tells the prompt."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vqclip.files import atomic_path

from .asked import lacks
from .measures import Seen
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
        lines = textwrap.fill(caption, 21, max_lines=LINES, placeholder=" …")
        draw.multiline_text((left, top + SIDE + 2), lines, "black", font, spacing=1)
    with atomic_path(path) as unfinished:
        page.save(unfinished, quality=88)


def blind(folder: Path, seen: list[Seen], count: int = 40) -> None:
    """Pictures with four prompts each for someone who knows neither, and the key beside the folder.

    None of the three wrong prompts asks for the same and more, or the same and less, as the right one.
    """
    rng, texts = np.random.default_rng(count), {s.facts: s.text for s in seen}
    folder.mkdir(parents=True, exist_ok=True)
    choices, key = [], []
    order = {seen[k].facts: seen[k] for k in rng.permutation(len(seen))}  # one picture a prompt
    for k, s in enumerate(list(order.values())[:count], 1):
        others = [text for facts, text in texts.items() if lacks(facts, s.facts) and lacks(s.facts, facts)]
        options = rng.permutation([s.text, *rng.choice(others, 3, replace=False)])
        shutil.copyfile(s.path, folder / f"{k:02}.png")
        choices.append(
            f"{k:02}.png\n" + "".join(f"  {letter}  {text}\n" for letter, text in zip("ABCD", options, strict=True))
        )
        key.append(f"{k:02} {'ABCD'[list(options).index(s.text)]}\n")
    (folder / "choices.txt").write_text("".join(choices), "utf-8")
    folder.with_name(f"{folder.name}-key.txt").write_text("".join(key), "utf-8")


def _font(size: int):
    """DejaVu Sans has all four alphabets; Pillow's own font has no Cyrillic and shows boxes for it."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
