"""How vqclip is installed: what it needs is listed once, in requirements.txt."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def requirements() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (HERE / "requirements.txt").read_text("utf-8").splitlines())
    return [line for line in lines if line]


setup(
    name="vqclip",
    version=re.search(r'__version__ = "(.+)"', (HERE / "vqclip/__init__.py").read_text("utf-8"))[1],
    description="Type a prompt and watch a picture grow: VQGAN+CLIP in notebooks, on the command line and in Python",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    packages=["vqclip", "vqclip.embedded"],
    package_data={"vqclip": ["*.yaml", "*.css", "page.ipynb"], "vqclip.embedded": ["*.safetensors", "*.yaml"]},
    python_requires=">=3.10,<3.15",  # 3.10 is torch's oldest; above 3.14 nothing was tried
    install_requires=requirements(),
    extras_require={
        "open_clip": ["open_clip_torch>=3,<4", "transformers>=4.40"],  # more judges; transformers reads their words
        "notebook": ["jupyterlab>=4", "ipykernel!=7.0.*,!=7.1.*,!=7.2.*,!=7.3.*"],  # those starve widget messages
        "studio": ["voila>=0.5", "ipykernel!=7.0.*,!=7.1.*,!=7.2.*,!=7.3.*"],
        "browser": ["playwright>=1.40", "jupyterlab>=4", "voila>=0.5"],  # and a chromium
        "plots": ["matplotlib>=3.8"],  # what training and benchmarks draw
        "train": ["pymorphy3>=2"],  # Russian words in all their forms, for texts to learn
        "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "nbclient>=0.10", "nbformat>=5.9", "ruff>=0.9",
                 "pymorphy3>=2", "ipykernel!=7.0.*,!=7.1.*,!=7.2.*,!=7.3.*"],
    },
    entry_points={"console_scripts": ["vqclip = vqclip.cli:main"]},
)  # fmt: skip
