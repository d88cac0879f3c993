"""What the README says is so: its table of settings is the program's, its links lead somewhere."""

import re
from pathlib import Path

from vqclip.settings import PRESETS, table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def markdown_table() -> str:
    """The table of settings as the README shows it; run this file to print it."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    rows = []
    for name, default, allowed, help in table():
        shown = f"`{cell(default)}`" if default else ""
        rows.append(f"| `{name}` | {shown} | {cell(help)}{f' ({allowed})' if allowed else ''} |")
    return "\n".join(["| setting | default | what it does |", "|---|---|---|", *rows])


def test_the_table_of_settings_is_the_programs():
    assert markdown_table() in README


def test_presets_are_named():
    assert all(f"`{name}`" in README or f"--preset {name}" in README for name in PRESETS)


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README) + re.findall(r'src="(?!https?:)([^"]+)"', README):
        assert (ROOT / target).exists(), target


if __name__ == "__main__":
    print(markdown_table())
