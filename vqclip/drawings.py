"""What the panel draws itself: meters, the curve of losses, a bar. Text in, HTML out; colours are the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import ipywidgets

POINTS = 240  # of a curve: more than a screen shows does not help


def style_sheet() -> ipywidgets.HTML:
    """The one style sheet of panel and form, as a widget that shows nothing; both bring it, as each may be alone."""
    rules = Path(__file__).with_name("panel.css").read_text("utf-8")
    return ipywidgets.HTML(f"<style>{rules}</style>", layout={"display": "none"})


def meter(now: float, best: float, trend: float, scale: float, tip: str, away: bool = False) -> str:
    """How similar the picture is to a prompt: a bar, a mark at the best, and figures.

    Args:
        now, best: cosines.
        trend: how much it rose of late.
        scale: the cosine at which a bar is full.
        tip: what to say when pointed at, and to those who cannot see it.
        away: whether the picture is pushed away from it.
    """
    arrow = "▲" if trend > 0.002 else "▼" if trend < -0.002 else "–"
    width, mark = (100 * min(max(value / scale, 0), 1) for value in (now, best))
    return (
        f'<div class="vqclip-meter{" vqclip-away" * away}" title="{escape(tip)}">'
        f'<div class="vqclip-track" role="meter" aria-label="{escape(tip)}" aria-valuemin="0" '
        f'aria-valuemax="{scale:.2f}" aria-valuenow="{now:.4f}">'
        f'<i style="width:{width:.1f}%"></i><b style="left:{mark:.1f}%"></b></div>'
        f'<span class="vqclip-numbers">{now:.3f} {arrow} · ★ {best:.3f}</span></div>'
    )


def full_scale(cosines: Sequence[float]) -> float:
    """A round cosine that none of these exceeds, so that all meters share one scale."""
    return max(0.3, math.ceil(10 * max(cosines, default=0.0) + 1e-9) / 10)


def bar(share: float) -> str:
    """How much of the whole is done, from 0 to 1."""
    return f'<div class="vqclip-bar"><i style="width:{100 * min(max(share, 0), 1):.1f}%"></i></div>'


def curve(values: Sequence[float], marks: Sequence[int] = (), tip: str = "") -> str:
    """A line through the values, newest at the right; `marks` are places at which something was changed."""
    stride = max(1, len(values) // POINTS)
    picked = [value for value in (*values[:-1:stride], *values[-1:]) if math.isfinite(value)]  # looks at no others
    if len(picked) < 2:
        return '<svg class="vqclip-curve"></svg>'
    low, high = min(picked), max(picked)
    x = [100 * place / (len(picked) - 1) for place in range(len(picked))]
    y = [38 - 36 * (value - low) / (high - low or 1) for value in picked]
    points = " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x, y, strict=True))
    lines = "".join(
        f'<line x1="{(at := 100 * mark / len(values)):.2f}" x2="{at:.2f}" y1="0" y2="40" stroke="currentColor" '
        'stroke-opacity=".35" stroke-dasharray="2 2" vector-effect="non-scaling-stroke"/>'
        for mark in marks
        if 0 < mark < len(values)
    )
    return (
        f'<svg class="vqclip-curve" viewBox="0 0 100 40" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(tip)}"><title>{escape(tip)}</title>{lines}<polyline points="{points}" fill="none" '
        'stroke="currentColor" stroke-width="1.5" vector-effect="non-scaling-stroke"/></svg>'
    )
