"""Watching a run: iterators that pass frames through and show them on the way.

    for frame in progress(session.record(run), run): ...        a bar, in a terminal or a notebook
    for frame in preview(session.record(run)): ...              the growing picture, in a notebook
    show_video(path)                                            a video, playing in the notebook's page
    offer_download(path)                                        a file, into the browser's downloads
"""

from __future__ import annotations

import base64
import io
import mimetypes
import tempfile
import time
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from . import colab
from .run import Frame, Run
from .video import shrink_video

EMBEDDED = 8_000_000  # bytes of video that may go into a page; more disconnects Colab
DOWNLOADED = 20_000_000  # bytes that a page may carry behind a button
INTERVAL = 0.3  # seconds between two pictures: as often as an eye wants, and nothing piles up in the browser
LARGEST = 768  # pixels a side of a picture that grows in a page; the picture itself is in the session
QUALITY = 85  # of its JPEG


def progress(frames: Iterable[Frame], run: Run) -> Iterator[Frame]:
    """Pass frames through under a progress bar with the similarity (cosine) to each prompt."""
    with tqdm(total=run.steps, initial=max(0, run.step - 1), unit="step", dynamic_ncols=True) as bar:
        for frame in frames:
            bar.set_postfix_str(" · ".join(f"{text[:16]} {cosine:.2f}" for text, cosine in frame.similarity.items()),
                                refresh=False)  # fmt: skip
            bar.update(frame.step - bar.n)
            yield frame


def preview(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Pass frames through and show the newest picture in a notebook's output, about three times a second.

    One widget holds the picture as a JPEG, so nothing is left in the notebook's file.
    """
    import ipywidgets
    from IPython.display import display

    picture = ipywidgets.Image(format="jpeg", layout=ipywidgets.Layout(max_width="512px", width="100%"))
    display(picture)
    shown, frame = 0.0, None
    try:
        for frame in frames:
            if time.monotonic() - shown >= INTERVAL:
                picture.value, shown = jpeg(frame.pil), time.monotonic()
            yield frame
    finally:
        if frame is not None:
            picture.value = jpeg(frame.pil)


def jpeg(picture: Image.Image) -> bytes:
    """A picture for a page that shows it grow: as a JPEG, of at most `LARGEST` pixels a side."""
    small, buffer = picture.copy(), io.BytesIO()
    small.thumbnail((LARGEST, LARGEST))
    small.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def show_video(path: str | Path) -> None:
    """Play a video in the notebook's page; of one too large for a page, a smaller copy that is made for it.

    The page gets the bytes themselves, because neither Colab nor a notebook in another folder could follow a path.
    """
    from IPython.display import HTML, display

    path = Path(path)
    data, kind = playable(path)
    source = base64.b64encode(data).decode()
    # Plain tags, because Jupyter's own Video is emptied when a notebook is opened again untrusted.
    if kind == "mp4":
        tag = '<video controls loop playsinline style="max-width: 100%; width: 512px" src="data:video/mp4;base64,{}">'
    else:
        tag = f'<img style="max-width: 100%; width: 512px" src="data:image/{kind};base64,{{}}">'
    display(HTML(tag.format(source)))
    size = path.stat().st_size
    print(path if len(data) == size else f"{path} has {size / 1e6:.0f} MB; what plays here is a small copy")


def playable(path: Path) -> tuple[bytes, str]:
    """What a page can play of a video: (its bytes or, if those are too many, a smaller copy's; "mp4", "gif" or "webp").

    Raises:
        VideoError: it is too large and cannot be read.
    """
    if path.stat().st_size <= EMBEDDED:
        return path.read_bytes(), path.suffix[1:].lower()
    with tempfile.TemporaryDirectory() as folder:
        return shrink_video(path, Path(folder) / "preview.mp4", EMBEDDED).read_bytes(), "mp4"


def offer_download(path: str | Path, at_once: bool = False) -> None:
    """Offer a file to be saved where the browser is, by a button in the page.

    In Colab, whose pages take no such button of ours, it is handed over where `at_once` says so, and never otherwise:
    cells that are run all together should start no download.
    """
    from IPython.display import HTML, display

    path = Path(path)
    if colab.in_colab():
        if at_once:
            colab.download(path)
        else:
            print(f"{path} is ready: tick `download` and run this cell again to save it on your computer")
    elif link := download_link(path):
        display(HTML(link))
    else:
        print(f"{path} has {path.stat().st_size / 1e6:.0f} MB, too much to pass through a page: it is there")


def download_link(path: Path) -> str | None:
    """A button in HTML that saves a file where the browser is; None for one too large to be carried by a page."""
    if path.stat().st_size > DOWNLOADED:
        return None
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    source = base64.b64encode(path.read_bytes()).decode()
    # A link that looks like a button: within a link, Firefox does not follow a press on a real one.
    return (f'<a class="jupyter-button mod-primary" style="text-decoration: none; width: auto" '
            f'download="{escape(path.name)}" href="data:{kind};base64,{source}">⬇ {escape(path.name)}</a>')  # fmt: skip
