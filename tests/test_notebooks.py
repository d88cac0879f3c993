"""Every notebook runs from top to bottom, as Run All does, and hands over to the next through the workspace."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from vqclip import Session

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
spec = importlib.util.spec_from_file_location("stamp", NOTEBOOKS.parent / "tools" / "notebooks.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
BROKEN = """
import itertools
from vqclip import losses
calls = itertools.count()
losses.LOSSES["edges"] = lambda image: image.mean() * (float("nan") if next(calls) == 2 else 0)
studio.player.settings = studio.player.settings.replace(losses="edges:1", size=64, steps=5, cutouts=4)
"""
QUICK = {"steps": 3, "width": 64, "height": 64, "cutouts": 4, "length": 1}


def run_all(name: str, **parameters) -> str:
    """Execute a notebook with values put after its `parameters` cell; returns all that it printed."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    values = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    for at, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", ()):
            notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(values))
            break
    NotebookClient(notebook, timeout=300, kernel_name="python3", store_widget_state=False,
                   resources={"metadata": {"path": NOTEBOOKS}}).execute()  # fmt: skip
    outputs = (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    return "".join(output.get("text", "") or str(output.get("data", "")) for output in outputs)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VQCLIP_HOME", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


def test_the_suite_paints_a_picture_and_its_video(home):
    here = run_all("01_install")
    assert "workspace:" in here and "paints" in here  # what there is to paint on
    assert "codes" in run_all("02_checkpoint")
    assert "desert 67 % · snow 33 %" in run_all("03_parameters", **QUICK)
    run_all("04_run")
    session = Session.latest(home)
    assert len(session.codes) == 4 and (session.path / "final.png").exists()
    shown = run_all("05_video", length=1, smooth=1)
    assert "<video" in shown and 'download="video.mp4"' in shown
    assert (session.path / "video.mp4").stat().st_size > 1000


def test_the_studio_does_it_all(home):
    assert "<video" in run_all("00_studio", **QUICK)
    assert (Session.latest(home).path / "video.mp4").exists()


def test_an_error_reaches_the_cell(home):
    with pytest.raises(CellExecutionError, match="size"):
        run_all("00_studio", **QUICK | {"width": 0})


def test_an_error_in_a_step_reaches_the_cell_and_whoever_runs_the_notebook(home, tmp_path):
    """`jupyter execute`, as in somebody's script, exits with an error, and runs no further cell."""
    notebook = nbformat.read(NOTEBOOKS / "00_studio.ipynb", as_version=4)
    at = next(at for at, cell in enumerate(notebook.cells) if cell.source.endswith("await studio.run()"))
    notebook.cells.insert(at, nbformat.v4.new_code_cell(BROKEN))
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    done = subprocess.run([sys.executable, "-m", "jupyter", "execute", "--timeout=300", "broken.ipynb"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode != 0
    assert "NotFinite" in done.stderr and "at step 2 the edges became nan" in done.stderr
    session = Session.latest(home)
    assert len(session.codes) == 2 and (session.path / "final.png").exists()  # what was made is kept
    assert not (session.path / "video.mp4").exists()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert not any(line.startswith(("def ", "class ")) for line in cell.source.splitlines())


def test_they_are_as_their_tool_stamps_them(monkeypatch, tmp_path, capsys):
    assert tool.main(check=True) == 0, capsys.readouterr().out
    for path in NOTEBOOKS.glob("*.ipynb"):
        (tmp_path / path.name).write_text(path.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(tool, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(tool, "address", lambda: {"repository": "some/where", "ref": "v1"})
    assert tool.main(check=True) == 1 and tool.main(check=False) == 0 and tool.main(check=True) == 0
    for path in tmp_path.glob("*.ipynb"):
        text = path.read_text("utf-8")
        assert f"colab.research.google.com/github/some/where/blob/v1/notebooks/{path.name}" in text
        assert "git+https://github.com/some/where@v1" in text


def test_what_a_run_leaves_behind_is_taken_away(tmp_path, monkeypatch):
    path = tmp_path / "00_studio.ipynb"
    notebook = nbformat.read(NOTEBOOKS / path.name, as_version=4)
    notebook.metadata["widgets"] = {"state": {}}
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="hello")], 7
    cell.metadata["executionInfo"] = {"user": {"displayName": "A Person"}}
    nbformat.write(notebook, path)
    monkeypatch.setattr(tool, "NOTEBOOKS", tmp_path)
    assert tool.main(check=True) == 1 and tool.main(check=False) == 0
    assert nbformat.read(path, as_version=4) == nbformat.read(NOTEBOOKS / path.name, as_version=4)
