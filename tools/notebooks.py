"""Keep the notebooks alike and clean: their install cell, badge and metadata, and no outputs.

    python tools/notebooks.py             rewrite what differs
    python tools/notebooks.py --check     only say what differs; exit code 1 if something does

Where the project can be fetched from is set once, in pyproject.toml: `[tool.vqclip] repository = "owner/name"` on
GitHub and `ref`, a branch or tag. As long as it is empty there are no badges, and notebooks install from a checkout.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "private_outputs": True, "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
INSTALL = """\
# @title Install vqclip {{ display-mode: "form" }}
import importlib.util{imports}

%env OMP_WAIT_POLICY=passive
if importlib.util.find_spec("vqclip") is None:
    source = {source}
    %pip install -q "{{source}}"
    importlib.invalidate_caches()
    if importlib.util.find_spec("vqclip") is None:
        raise SystemExit("vqclip could not be installed: pip says why above")
print("vqclip is ready")"""
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{repository}/blob/{ref}/notebooks/{name})"


def address() -> dict[str, str]:
    """`repository` and `ref`, as pyproject.toml has them."""
    section = (ROOT / "pyproject.toml").read_text("utf-8").partition("[tool.vqclip]")[2].partition("\n[")[0]
    return dict(re.findall(r'^(\w+) = "(.*?)"', section, re.MULTILINE))


def stamped(notebook: Any, name: str, at: dict[str, str]) -> Any:
    """The notebook as it should be: cells of a kind alike, nothing that a run leaves behind."""
    imports, source = "", '".."'
    if at["repository"]:
        imports = "\nimport os"
        source += f' if os.path.exists("../setup.py") else "git+https://github.com/{at["repository"]}@{at["ref"]}"'
    first = notebook.cells[0]
    words = [line for line in first.source.splitlines() if not line.startswith("[![")]
    badge = [BADGE.format(name=name, **at)] if at["repository"] else []
    first.source = "\n".join(badge + words)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name[:2]}-{number}"
        tags = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            if cell.source.startswith("# @title Install vqclip"):
                cell.source = INSTALL.format(imports=imports, source=source)
            cell.outputs, cell.execution_count = [], None
            tags |= {"cellView": "form"} if cell.source.startswith("# @title") else {}
        cell.metadata = nbformat.from_dict(tags)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def main(check: bool) -> int:
    """Rewrite, or with `check` only report, every notebook that is not as it should be."""
    differing = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        before = path.read_text("utf-8")
        after = nbformat.writes(stamped(nbformat.reads(before, as_version=4), path.name, address()), indent=1) + "\n"
        if after != before:
            differing.append(path.name)
            if not check:
                path.write_text(after, "utf-8")
    if differing:
        print("not as they should be:" if check else "rewritten:", ", ".join(differing))
    return int(check and bool(differing))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
