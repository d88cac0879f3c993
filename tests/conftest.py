"""What all tests share: one thread, warnings are errors, the tiny models as files and as the package loads them."""

import contextlib

import pytest
import tiny
import torch

import vqclip

torch.set_num_threads(1)  # the tiny networks are too small for more, and so the sums are always the same


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    # taming's, torch's and imageio's own; the last, of the ipykernel that Colab has
    for text in ("Importing from timm", r"`torch.jit.*` is deprecated", "Exception ignored in. <_io.FileIO",
                 "Parsing dates involving a day of month"):  # fmt: skip
        config.addinivalue_line("filterwarnings", f"ignore:{text}")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder of the tiny models: vqgan.safetensors and its .yaml (f = 2), vit.safetensors, rn.safetensors."""
    folder = tmp_path_factory.mktemp("checkpoints")
    painter = tiny.vqgan()
    tiny.write_safetensors(folder / "vqgan.safetensors", painter)
    tiny.write_yaml(folder / "vqgan.yaml", painter)
    for name in ("vit", "rn"):
        tiny.write_clip_safetensors(folder / f"{name}.safetensors", tiny.clip(name))
    return folder


@pytest.fixture(scope="session")
def vqgan(files):
    return vqclip.load_vqgan("vqgan", root=files)


@pytest.fixture(scope="session")
def vit(files):
    return vqclip.load_clip("vit", root=files)


@pytest.fixture(scope="session")
def rn(files):
    return vqclip.load_clip("rn", root=files)


@pytest.fixture
def full_disk():
    """A context manager: `with full_disk(n)`, no file grows beyond n bytes; writing more fails as on a full disk."""
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
