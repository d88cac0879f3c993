"""JupyterLab and Voila on this machine, and Debian's chromium to look at them: for tests marked `browser`.

`VQCLIP_CHROMIUM` names another chromium; `VQCLIP_SCREENSHOTS` a folder in which pictures of every state are left.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
PATIENCE = float(os.environ.get("VQCLIP_PATIENCE", 120)) * 1000  # ms until a test gives up
TOKEN = "a-token-of-the-tests"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


@contextlib.contextmanager
def chromium(width=1280, height=1000, **context):
    """A new page of a new browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = os.environ.get("VQCLIP_CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=QUIET, timeout=PATIENCE)
        page = browser.new_page(viewport={"width": width, "height": height}, **context)
        page.set_default_timeout(PATIENCE)
        try:
            yield page
        finally:
            browser.close()


@contextlib.contextmanager
def server(folder, module, *arguments):
    """A server as a program of its own, whose kernels have this Python: its port."""
    kernel = folder / "share" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3", "language": "python"}  # fmt: skip
    (kernel / "kernel.json").write_text(json.dumps(spec))
    settings = folder / "lab"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(OVERRIDES))
    port = free_port()
    environment = {**os.environ, "JUPYTER_PATH": str(folder / "share"), "PYTHONPATH": str(ROOT),
                   "JUPYTER_CONFIG_DIR": str(folder / "config"), "VQCLIP_HOME": str(folder / "workspace"),
                   "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}  # fmt: skip
    command = [sys.executable, "-m", module, *(argument.format(port=port, folder=folder) for argument in arguments)]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            wait_for(f"http://127.0.0.1:{port}/", process)
            yield port
        finally:
            process.terminate()
            process.wait()


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(address, process):
    """Until something answers there, be it with a refusal."""
    until = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < until:
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(address, timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
            continue
        return
    raise AssertionError("the server does not answer")


def lab(folder):
    """JupyterLab: its port."""
    return server(folder, "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", "--port={port}",
                  "--ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}", "--ServerApp.root_dir={folder}",
                  "--LabServerApp.app_settings_dir={folder}/lab")  # fmt: skip


@contextlib.contextmanager
def voila(folder):
    """`vqclip studio`: its port, and the token that it prints."""
    with server(folder, "vqclip", "studio", "--no-browser", "--port={port}") as port:
        yield port, re.search(r"token=(\w+)", (folder / "server.log").read_text())[1]


def notebook(folder, name, **parameters):
    """A copy of one of ours, with values put after its `parameters` cell."""
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    at = next(i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ()))
    values = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    book.cells.insert(at + 1, nbformat.v4.new_code_cell(values))
    nbformat.write(book, folder / f"{name}.ipynb")


class StudioPage:
    """The panel in a page, as a person has it: looks, types, presses."""

    def __init__(self, page):
        self.page = page
        self.panel = page.locator(".vqclip-studio").first

    def wait(self, condition, what="it"):
        """Look again and again, from here: a promise given to the page would pass at once."""
        for _ in range(int(PATIENCE / 100)):
            if condition():
                return
            self.page.wait_for_timeout(100)
        self.shoot("given-up")
        raise AssertionError(f"{what} did not come; the panel says: {self.status()}")

    def status(self):
        return self.panel.locator(".vqclip-status").first.text_content()

    def step(self):
        text = self.panel.locator(".vqclip-left .vqclip-fine").all_text_contents()
        found = [line.split()[1] for line in text if line.startswith("step ")]
        return int(found[0]) if found else -1

    def paints_on(self, steps=2):
        goal = self.step() + steps
        self.wait(lambda: self.step() >= goal, f"step {goal}")

    def pixels(self):
        """The mean colour of the picture (red, green, blue), and a number that differs with the picture."""
        return self.page.evaluate("""() => {
            const img = document.querySelector('.vqclip-studio img'), c = document.createElement('canvas');
            c.width = c.height = 32; const x = c.getContext('2d'); x.drawImage(img, 0, 0, 32, 32);
            const d = x.getImageData(0, 0, 32, 32).data; let s = [0, 0, 0], h = 0;
            for (let i = 0; i < d.length; i++) { if (i % 4 < 3) s[i % 4] += d[i] / 1024; h = (h * 31 + d[i]) % 1e9; }
            return [...s, h]; }""")

    def meter(self, row):
        return float(self.panel.locator(".vqclip-row").nth(row).locator("[role=meter]").get_attribute("aria-valuenow"))

    def press(self, name):
        self.page.locator("button.jupyter-button", has_text=re.compile(rf"^\s*{name}\s*$")).first.click()

    def set_weight(self, row, value):
        """Type a weight beside its slider; says when Enter was pressed, in seconds since 1970."""
        readout = self.panel.locator(".vqclip-row").nth(row).locator(".widget-readout")
        readout.click()
        readout.press("Control+a")
        readout.press_sequentially(str(value))
        pressed = time.time()
        readout.press("Enter")
        return pressed

    def shoot(self, name):
        """Leave a screenshot where `VQCLIP_SCREENSHOTS` says."""
        if folder := os.environ.get("VQCLIP_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


def open_in_lab(page, port, name):
    """Open a notebook by itself and wait for its kernel."""
    page.goto(f"http://127.0.0.1:{port}/doc/tree/{name}.ipynb?token={TOKEN}")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    studio = StudioPage(page)
    ready = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
    studio.wait(lambda: page.evaluate(ready) in ("idle", "busy"), "the kernel")
    return studio


def command(page, name, **arguments):
    """Run one of JupyterLab's commands, without waiting for its end."""
    page.evaluate("([name, args]) => { window.jupyterapp.commands.execute(name, args); }", [name, arguments])


def change_theme(page, name):
    """Give JupyterLab its "Light" or "Dark" theme, and wait until it is all there."""
    command(page, "apputils:change-theme", theme=f"JupyterLab {name}")
    light = str(name == "Light").lower()
    page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")
    page.wait_for_selector("#jupyterlab-splash", state="detached")
