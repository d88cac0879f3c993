"""Watching a run: iterators that pass frames through and show them on the way.

    for frame in progress(session.record(run), run): ...        a bar, in a terminal or a notebook
    for frame in preview(session.record(run)): ...              the growing picture, in a notebook
    show_video(path)                                            a video, playing in the notebook's page
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm.auto import tqdm

from .run import Frame, Run

EMBEDDED = 8_000_000  # bytes of video that may go into a page; more disconnects Colab
INTERVAL = 0.3  # seconds between two pictures: as often as an eye wants, and nothing piles up in the browser


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
                picture.value, shown = _jpeg(frame), time.monotonic()
            yield frame
    finally:
        if frame is not None:
            picture.value = _jpeg(frame)


def _jpeg(frame: Frame) -> bytes:
    buffer = io.BytesIO()
    frame.pil.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def show_video(path: str | Path) -> None:
    """Play an MP4 in the notebook's page; one too large for a page is named instead."""
    from IPython.display import HTML, display

    data = Path(path).read_bytes()
    if len(data) > EMBEDDED:
        print(f"{path} has {len(data) / 1e6:.0f} MB, too much for this page: open the file itself")
        return
    source = base64.b64encode(data).decode()
    # A plain tag, because Jupyter's own Video is emptied when a notebook is opened again untrusted.
    display(HTML(f'<video controls loop width="512" src="data:video/mp4;base64,{source}"></video>'))
    print(path)
