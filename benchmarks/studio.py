"""How quickly the studio answers, and what its panel costs: JupyterLab, a real chromium, the embedded pair.

    make bench-studio        # python -m benchmarks.studio, with what the browser tests need

A click counts from the moment the page dispatches it; clocks of page and kernel are one, as both are on this machine.
What is measured goes to `benchmarks/results/studio.json`, and to standard output as a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import torch

import vqclip
from vqclip.files import atomic

from .bench import RESULTS
from .measure import machine, spread

BEGIN = """
import vqclip
settings = vqclip.Settings(prompts="desert:.9 | snow:.1", size=128, cutouts=16, steps=100_000)
"""
STEERED = [BEGIN, """
from benchmarks.studio import spy
studio = vqclip.Studio("workspace", settings)
spy(studio.player)
studio
""", "await studio.run()"]
IN_TURNS = [BEGIN, "from benchmarks.studio import in_turns\nawait in_turns(settings, {pairs}, {steps})"]
ON_ONE_CORE = ["import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])", *IN_TURNS]  # before torch
HEARD, PACES = "heard.jsonl", "paces.json"  # what the kernel tells us, in the notebook's folder
NOW = "performance.timeOrigin + performance.now()"  # in a page: seconds since 1970, times a thousand
WATCH = f"""() => {{
    window.seen = [];
    const step = () => Number(/step (\\d+)/.exec(document.querySelector('.vqclip-left').textContent)?.[1] ?? -1);
    new MutationObserver(() => {{
        if (window.seen.length == 0 || step() != window.seen.at(-1)[1]) window.seen.push([{NOW}, step()]);
    }}).observe(document.querySelector('.vqclip-left'), {{childList: true, subtree: true}});
}}"""


# In the kernel


def spy(player: vqclip.player.Player) -> None:
    """Note when a player is told something: a line {"what", "when"} each in the file HEARD."""

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            with open(HEARD, "a") as file:
                file.write(json.dumps({"what": name, "when": time.time()}) + "\n")
            return call(*arguments, **named)

        return noted

    for name in ("pause", "play", "change"):
        setattr(player, name, noting(name, getattr(player, name)))


def _in_a_thread(call: Callable[[], Any]) -> Any:
    """What a call returns, in a thread of its own, as the panel's steps are made.

    Were this thread to compute as well, OpenMP's threads would sleep at every wait of the panel's steps.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


async def in_turns(settings: vqclip.Settings, pairs: int, steps: int) -> None:
    """Steps with a panel on display, and as many recorded without, turn by turn.

    To the file PACES go seconds on the clock and of this process' own work; the page's work is its browser's.
    """
    from IPython.display import display

    took: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    studio = vqclip.Studio("workspace", settings.replace(steps=1))
    display(studio)
    await studio.run()  # loads, and warms up

    def bare() -> None:
        for _ in session.record(run):
            pass

    run = _in_a_thread(lambda: vqclip.generate(settings=settings.replace(steps=1)))
    session = vqclip.Session.create("workspace", run)
    _in_a_thread(bare)
    for turn in range(pairs):
        for way in ("with", "without") if turn % 2 == 0 else ("without", "with"):
            start, work = time.perf_counter(), time.process_time()
            if way == "with":
                studio.player.steps += steps
                await studio.run()
            else:
                run.steps += steps
                _in_a_thread(bare)
            took[way].append((time.perf_counter() - start, time.process_time() - work))
    with atomic(Path(PACES), "w") as file:
        json.dump(took, file)


# Beside the page


def heard(folder: Path, what: str) -> list[float]:
    """When the kernel's player was told `what`, in seconds since 1970."""
    path = folder / HEARD
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["when"] for line in lines if line["what"] == what]


def answers(page: Any, studio: Any, folder: Path, times: int) -> dict[str, list[float]]:
    """Seconds from a click to its handler, from a weight to its handler, and to the first picture it had a part in."""
    found: dict[str, list[float]] = {"click": [], "weight": [], "visible": []}

    def told(what: str, before: int) -> float:
        studio.wait(lambda: len(heard(folder, what)) > before, what)
        return heard(folder, what)[before]

    for _ in range(times):
        for label, what in (("Pause", "pause"), ("Paint", "play")):
            before = len(heard(folder, what))
            button = page.locator("button.jupyter-button", has_text=label).first
            studio.wait(button.is_enabled, label)
            clicked = button.evaluate(f"button => {{ const at = {NOW}; button.click(); return at / 1000; }}")
            found["click"].append(told(what, before) - clicked)
        studio.paints_on(2)
    page.evaluate(WATCH)
    pressed = []
    for turn in range(times):
        before = len(heard(folder, "change"))
        pressed.append(studio.set_weight(1, (0.9, 0.1)[turn % 2]))
        found["weight"].append(told("change", before) - pressed[-1])
        studio.paints_on(5)
    seen = page.evaluate("() => window.seen")
    log = vqclip.Session.latest(folder / "workspace").steering
    acted = sorted(log)[-times:]  # a change at a step is first seen in the picture of the next
    for at, step in zip(pressed, acted, strict=True):
        found["visible"].append(next(t / 1000 for t, shown in seen if shown > step) - at)
    return found


def weighs(page: Any) -> dict[str, float]:
    """What a page takes, garbage collected: MB of scripts' memory, nodes, and MB of the process that shows it."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("HeapProfiler.collectGarbage")
    devtools.send("Performance.enable")
    metrics = {each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]}
    whole = page.context.browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    status = [Path(f"/proc/{each['id']}/status").read_text() for each in whole if each["type"] == "renderer"]
    resident = max(int(text.partition("VmRSS:")[2].split()[0]) for text in status)
    return {"scripts": metrics["JSHeapUsedSize"] / 1e6, "nodes": metrics["Nodes"], "process": resident / 1e3}


@contextlib.contextmanager
def opened(*cells: str) -> Iterator[tuple[Path, Any, Any]]:
    """A notebook of these cells in JupyterLab, running: its folder, the page and the studio in it."""
    from tests import browser

    with tempfile.TemporaryDirectory() as name, browser.lab(Path(name)) as port, browser.chromium() as page:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, Path(name) / "book.ipynb")
        studio = browser.open_in_lab(page, port, "book")
        browser.command(page, "notebook:run-all-cells")
        yield Path(name), page, studio


def measure(times: int, steps: int, pairs: int, each: int) -> dict[str, Any]:
    """All of it: so many clicks and weights, the page again after so many steps, turns of `each` steps."""
    found: dict[str, Any] = {"machine": machine(torch.device("cpu"))}
    with opened(*STEERED) as (folder, page, studio):
        studio.panel.wait_for()
        studio.wait(lambda: studio.step() >= 20, "the first steps")
        found["answers"] = answers(page, studio, folder, times)
        found["page"] = [{"step": studio.step(), **weighs(page)}]
        for _ in range(10):
            studio.paints_on(steps // 10)  # each has the patience of one
        found["page"].append({"step": studio.step(), **weighs(page)})
        studio.press("Stop")
        studio.wait(lambda: studio.status().startswith("Stopped"), "the stop")
    for name, cells in (("paces", IN_TURNS), ("paces on one core", ON_ONE_CORE)):
        with opened(*(cell.format(pairs=pairs, steps=each) for cell in cells)) as (folder, _, studio):
            studio.wait((folder / PACES).exists, "the turns")
            found[name] = json.loads((folder / PACES).read_text())
    return found


def table(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = ["| | median | least to most |", "|---|---|---|"]
    for name, label in (("click", "a click until its handler runs"), ("weight", "a weight until its handler runs"),
                        ("visible", "a weight until a picture that it had a part in")):  # fmt: skip
        middle, low, high = spread([1000 * each for each in found["answers"][name]])
        lines.append(f"| {label} | {middle:.0f} ms | {low:.0f} to {high:.0f} |")
    for name, where in (("paces", "the browser on the same cores"), ("paces on one core", "on the other one")):
        for which, label in enumerate(("steps with the panel take longer by", "and work of the kernel's own by")):
            pairs = zip(found[name]["with"], found[name]["without"], strict=True)
            middle, low, high = spread([100 * (ours[which] / bare[which] - 1) for ours, bare in pairs])
            lines.append(f"| {label}, {where} | {middle:.1f} % | {low:.1f} to {high:.1f} |")
    for one in found["page"]:
        figures = f"{one['scripts']:.0f} MB of scripts' memory, {one['process']:.0f} MB in all"
        lines.append(f"| the page at step {one['step']} | {figures} | {one['nodes']:.0f} nodes |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few of everything: does it work at all; keeps nothing")
    quick = parser.parse_args().quick
    found = measure(2, 20, 1, 5) if quick else measure(10, 1000, 5, 60)
    if not quick:
        with atomic(RESULTS / "studio.json", "w") as file:
            json.dump(found, file, indent=1)
    print(table(found))


if __name__ == "__main__":
    main()
