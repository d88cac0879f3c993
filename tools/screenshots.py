"""Pictures of the studio for the README, light and dark: `python tools/screenshots.py`, where `make test-browser` runs.

Paints in a real JupyterLab, moves a weight on the way, and takes the panel as it is shortly before the end.
"""

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import browser  # noqa: E402

PROMPTS, MOVED, STEPS = "lighthouse at sunset:.8 | the sea:.2", (1, 0.4), 100


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, browser.lab(Path(folder)) as port:
        browser.notebook(Path(folder), "00_studio", prompts=PROMPTS, steps=STEPS)
        with browser.chromium(width=1180, device_scale_factor=1.5) as page:
            studio = browser.open_in_lab(page, port, "00_studio")
            browser.command(page, "notebook:run-all-cells")
            studio.panel.wait_for()
            studio.wait(lambda: studio.step() >= 30, "the first steps")
            studio.set_weight(*MOVED)
            studio.wait(lambda: studio.step() >= STEPS - 8, "the last steps")
            studio.press("Pause")
            studio.wait(lambda: studio.status() == "Paused", "the pause")
            page.mouse.click(2, 2)  # nowhere, so that nothing has the keyboard
            page.add_style_tag(content=".vqclip-status + .vqclip-fine { display: none }")  # a temporary folder's name
            for theme in ("Light", "Dark"):
                browser.change_theme(page, theme)
                page.wait_for_timeout(500)  # until its colours have faded in
                studio.panel.scroll_into_view_if_needed()
                shot = Image.open(BytesIO(studio.panel.screenshot()))
                shot.save(ROOT / "media" / f"studio-{theme.lower()}.webp", quality=85)


if __name__ == "__main__":
    main()
