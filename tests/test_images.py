"""Pictures: every kind of file comes in with the right colours; what goes out is exact, with its recipe."""

import http.server
import math
import os
import socket
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from vqclip import images
from vqclip.files import atomic, atomic_path
from vqclip.images import ImageError, load_image, read_recipe, save_png, to_pil

RED = (1.0, 0.0, 0.0)


def pixel(image, x=0, y=0):
    return tuple(round(v, 3) for v in image[0, :, y, x].tolist())


def gradient(width=40, height=24):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    """A PNG that promises a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def test_shape_type_and_values(tmp_path):
    gradient().save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.shape == (1, 3, 24, 40) and image.dtype == torch.float32 and image.is_contiguous()
    assert torch.equal(image, load_image(gradient())) and torch.equal(
        image, load_image(str(tmp_path / "a.png"))
    )
    assert pixel(image) == (0, 0, 1) and pixel(image, 39, 23) == (1, 1, 0)


def test_there_and_back_is_exact(tmp_path):
    levels = torch.arange(256).float().view(1, 16, 16).expand(3, -1, -1) / 255
    assert torch.equal(load_image(to_pil(levels))[0], levels)
    assert torch.equal(load_image(save_png(tmp_path / "a.png", levels))[0], levels)


def test_to_pil_rounds_and_clamps():
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 127.4 / 255, 254.6 / 255, 1.0, 7.0])
    row = to_pil(values.expand(3, 1, 8))
    assert np.asarray(row)[0, :, 0].tolist() == [0, 0, 0, 1, 127, 255, 255, 255]
    assert to_pil(values.bfloat16().expand(3, 1, 8).requires_grad_()).size == (8, 1)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.zeros(1, 3, 4, 4), "one image of a batch"),
        (torch.zeros(4, 4, 3), r"not \(4, 4, 3\)"),
        (torch.full((3, 2, 2), math.nan), "NaN"),
    ],
)
def test_to_pil_refuses(image, says):
    with pytest.raises(ImageError, match=says):
        to_pil(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = gradient()
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "phone.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "phone.png"), load_image(upright))


def clear_palette():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (4, 4), "red"), RED),
        (Image.new("1", (4, 4), 1), (1, 1, 1)),
        (Image.new("L", (4, 4), 51), (0.2, 0.2, 0.2)),
        (Image.new("LA", (4, 4), (0, 255)), (0, 0, 0)),
        (Image.new("LA", (4, 4), (0, 0)), (1, 1, 1)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (1, 1, 1)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), (1, 0.8, 0.8)),
        (Image.new("RGB", (4, 4), "red").convert("P"), RED),
        (clear_palette(), (1, 1, 1)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), RED),
        (Image.new("HSV", (4, 4), (0, 255, 255)), RED),
        (Image.fromarray(np.full((4, 4), 13107, np.uint16)), (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((4, 4), 13107, np.int32)), (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((4, 4), 51, np.int32)), (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((4, 4), 0.2, np.float32)), (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((4, 4), 51, np.float32)), (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), (0, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_has_its_colours(image, expected):
    assert pixel(load_image(image)) == expected


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_deep_grey_files_are_scaled_and_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
    assert torch.allclose(
        load_image(tmp_path / f"deep.{suffix}")[0, 0, 0], torch.linspace(0, 1, 64), atol=1 / 255
    )


@pytest.mark.parametrize("suffix", ["jpg", "webp", "gif", "bmp", "tiff"])
def test_other_formats(tmp_path, suffix):
    Image.new("RGB", (16, 8), "white").save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}").mean() > 0.99


def test_size_fills_and_crops_evenly():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    square = load_image(wide, (50, 50))
    assert square.shape == (1, 3, 50, 50)
    assert pixel(square, 3, 25) == pixel(square, 46, 25) == pixel(square, 25, 0) == (0, 0, 1)
    assert torch.allclose(square, square.flip(-1), atol=1 / 255)
    assert load_image(wide, (64, 32)).shape == (1, 3, 32, 64)
    with pytest.raises(ImageError, match="0x5"):
        load_image(wide, (0, 5))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "There is no picture .*a.png; check the name"),
        (b"", "is of no kind known here"),
        (b"<html>not found</html>", "is of no kind known here"),
        (png_header(20000, 10000), "more than 100 megapixels .*shrink it"),
        (png_header(11000, 10000), r"more than 100 megapixels \(11000x10000\); shrink it"),
        (png_header(64, 64), "damaged or cut short"),
    ],
)
def test_what_cannot_be_read_says_why_with_its_name(tmp_path, content, says):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=says) as caught:
        load_image(path)
    assert str(path) in str(caught.value)


def test_cut_short_and_folders(tmp_path):
    for suffix in ("png", "jpg", "webp", "gif", "tiff"):
        whole = tmp_path / f"whole.{suffix}"
        Image.effect_noise((200, 200), 60).convert("RGB").save(whole)
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(ImageError, match=f"cut.{suffix}"):
            load_image(cut)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("a\0b.png")


@pytest.mark.filterwarnings("error")
def test_large_but_allowed_gives_no_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 500
    )  # Pillow warns from here on and refuses from twice this
    gradient().save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape == (1, 3, 24, 40)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A web server on this machine; yields its folder and address."""
    monkeypatch.setenv("no_proxy", "*")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_pictures_from_the_web(site, monkeypatch):
    folder, address = site
    gradient().save(folder / "a b Þ.png")
    assert torch.equal(load_image(f"{address}/a b Þ.png"), load_image(gradient()))
    assert load_image(f"{address}/a%20b%20%C3%9E.png", (8, 8)).shape == (1, 3, 8, 8)
    with pytest.raises(ImageError, match="b.png cannot be fetched: the server says .*404"):
        load_image(f"{address}/b.png")
    (folder / "c.png").write_text("<html>")
    with pytest.raises(ImageError, match="c.png is of no kind known here"):
        load_image(f"{address}/c.png")
    monkeypatch.setattr(images, "MAX_DOWNLOAD", 10)
    with pytest.raises(ImageError, match="smaller"):
        load_image(f"{address}/a b Þ.png")


def test_silent_and_broken_addresses(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(images, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        with pytest.raises(ImageError, match="timed out"):
            load_image(f"http://127.0.0.1:{silent.getsockname()[1]}/a.png")
        port = silent.getsockname()[1]
    for address in (f"http://127.0.0.1:{port}/a.png", "http://[::1/a.png", "http://127.0.0.1:x/"):
        with pytest.raises(ImageError, match="cannot be fetched"):
            load_image(address)


RECIPE = {
    "prompts": "砂漠:2 | fog:-0.5",
    "seed": 7,
    "versions": {"vqclip": "1"},
    "stop": -math.inf,
    "list": [1, 2.5],
}


def test_recipe_travels_in_the_png(tmp_path):
    path = save_png(tmp_path / "new" / "a.png", torch.rand(3, 8, 12), RECIPE)
    assert read_recipe(path) == RECIPE
    assert b"iTXtvqclip" in path.read_bytes() and "砂漠".encode() in path.read_bytes()
    save_png(path, gradient(), {"long": "x" * 3_000_000})
    assert len(read_recipe(path)["long"]) == 3_000_000
    assert load_image(path).shape == (1, 3, 24, 40)


def test_files_without_a_recipe_say_so(tmp_path):
    plain = save_png(tmp_path / "plain.png", torch.zeros(3, 4, 4))
    gradient().save(tmp_path / "plain.jpg")
    gradient().save(tmp_path / "plain.gif", comment=b"made by another program")
    for path in (plain, tmp_path / "plain.jpg", tmp_path / "plain.gif"):
        with pytest.raises(ImageError, match=f"{path.name} carries no vqclip recipe"):
            read_recipe(path)
    with pytest.raises(ImageError, match="There is no picture"):
        read_recipe(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "text.mp4").write_text("text")
    for name in ("text.png", "text.mp4"):
        with pytest.raises(ImageError, match="not a readable picture or video"):
            read_recipe(tmp_path / name)


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = save_png(tmp_path / "a.png", torch.zeros(3, 4, 4))
    before = path.read_bytes()

    def full(self, file, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageError, match="a.png could not be written: No space left on device"):
        save_png(path, torch.ones(3, 4, 4))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_atomic_files(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic(path, "w") as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()
    with pytest.raises(KeyboardInterrupt), atomic(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    os.link(path, path.with_name("reader"))  # who reads the old file goes on reading the old file
    with atomic(path, "w") as file:
        file.write("new")
    assert path.read_text() == "new" and path.with_name("reader").read_bytes() == "é\n".encode()
    path.with_name("reader").unlink()
    with atomic_path(tmp_path / "deep" / "b.png") as temporary:
        assert temporary.suffix == ".png" and temporary.parent == path.parent
        temporary.write_bytes(b"b")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass  # nothing written is no empty file
    assert path.read_text() == "new" and sorted(os.listdir(path.parent)) == ["a.txt", "b.png"]
    with pytest.raises(ValueError, match="whole files"), atomic(path, "a"):
        pass
