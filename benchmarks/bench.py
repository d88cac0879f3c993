"""The table: how fast vqclip is beside a plain loop, on whatever device is here.

    python -m benchmarks.bench                       all rows; minutes to an hour
    python -m benchmarks.bench step-256 video        some of them
    python -m benchmarks.bench --quick               all of them on small networks: does it work at all
    python -m benchmarks.bench --profile             where a step's time goes

What is measured is kept in `benchmarks/results`, a JSON and a table for each kind of device; a row that is measured
again replaces the old one, whose value is printed beside it. A quick run keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from vqclip.files import atomic
from vqclip.run import pick_device

from .measure import machine
from .profile import profile
from .rows import ROWS, Bench, Figure, Row

RESULTS = Path(__file__).parent / "results"
HEAD = ("row", "work", "against", "value", "spread", "goal", "met", "of its floor", "processor time", "before")


def entry(figure: Figure, device: torch.device, quick: bool) -> dict[str, Any]:
    """A row's figures with all that they belong to."""
    made = datetime.now().astimezone().isoformat(timespec="minutes")
    return {"value": figure.value, "low": figure.low, "high": figure.high, "made": made, "quick": quick,
            "machine": machine(device), "raw": figure.raw}  # fmt: skip


def line(name: str, row: Row, now: dict[str, Any], before: dict[str, Any] | None = None) -> tuple[str, ...]:
    """A line of the table; `before` counts only if it comes from the same kind of machine.

    Beside a ratio by the clock stands how many times its floor ours took (see `floor`), and the ratio of processor
    time, which others on the machine disturb less.
    """
    kind = now["machine"]["kind"]
    met = {None: "", True: "yes", False: "no"}[row.met(now["value"], kind)]
    work, above = (now["raw"].get(name) for name in ("ratio_of_work", "above_floor"))
    same = before is not None and before["machine"]["device"] == now["machine"]["device"]
    return (name, row.work, row.against, f"{now['value']:.3g}{row.unit}", f"{now['low']:.3g} to {now['high']:.3g}",
            row.wanted(kind), met, f"{above:.3g}x" if above else "", f"{work:.3g}x" if work else "",
            f"{before['value']:.3g}{row.unit}" if same else "")  # fmt: skip


def table(lines: list[tuple[str, ...]]) -> str:
    """Markdown, aligned, without the columns in which nothing stands."""
    columns = [(head, *cells) for head, *cells in zip(HEAD, *lines, strict=True) if any(cells)]
    columns = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    text = [f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)]
    return "\n".join([text[0], "|" + "|".join("-" * (len(column[0]) + 2) for column in columns) + "|", *text[1:]])


def about(entries: dict[str, dict[str, Any]]) -> str:
    """Which machines figures are from, a line each."""
    seen: dict[str, str] = {}
    for name, made in entries.items():
        its = made["machine"]
        text = (f"{its['device']}, {its['cores']} cores, {its['threads']} threads, torch {its['torch']}, Python "
                f"{its['python']}, {made['made'][:10]}")  # fmt: skip
        seen[text] = f"{seen[text]}, {name}" if text in seen else name
    return "\n".join(f"{names}: {text}" for text, names in seen.items())


def read(path: Path) -> dict[str, dict[str, Any]]:
    """What was kept, by row."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def keep(folder: Path, kind: str, entries: dict[str, dict[str, Any]]) -> None:
    """Write the JSON and the table of a kind of device."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / f"{kind}.json", "w") as file:
        json.dump(entries, file, indent=1)
    lines = [line(name, ROWS[name], made) for name, made in entries.items() if name in ROWS]
    with atomic(folder / f"{kind}.md", "w") as file:
        file.write(f"# Measured by `make bench`\n\n{table(lines)}\n\n{about(entries)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; none means all")
    parser.add_argument("--quick", action="store_true", help="small networks, in seconds; figures mean nothing")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each row (5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
    parser.add_argument("--results", type=Path, default=None, help="the folder that figures are kept in")
    parser.add_argument("--profile", action="store_true", help="say where a step's time goes instead")
    asked = parser.parse_args()
    if strange := set(asked.rows) - ROWS.keys():
        parser.error(f"there is no row {min(strange)!r}; choose {', '.join(ROWS)}")
    torch.set_num_threads(asked.threads)
    device = pick_device(asked.device)
    bench = Bench(device, asked.pairs, asked.quick)
    if asked.profile:
        print(profile(bench.models, bench.pick(256, 32), bench.pick(64, 4)))
        return
    folder = asked.results or (None if asked.quick else RESULTS)
    kept = read(folder / f"{device.type}.json") if folder else {}
    before, made = dict(kept), {}
    for name in asked.rows or [name for name, row in ROWS.items() if row.only in ("", device.type)]:
        print(f"{name} ...", flush=True)
        made[name] = entry(ROWS[name].measure(bench), device, asked.quick)
        if folder:  # at once: the next row may take long, or all memory
            kept[name] = made[name]
            keep(folder, device.type, {row: kept[row] for row in ROWS if row in kept})
    print(table([line(name, ROWS[name], now, before.get(name)) for name, now in made.items()]))
    print(about(made))


if __name__ == "__main__":
    main()
