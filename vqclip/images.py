"""The only door between picture files and float tensors: `load_image` in, `to_pil` and `save_png` out.

Between modules an image is float32 (B, 3, H, W) in [0, 1]; sizes given by people are (width, height).
"""

import http.client
import io
import json
import os
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from . import metadata
from .files import atomic

MAX_PIXELS = (
    100_000_000  # 300 MB as RGB; a larger picture gains nothing for a latent of at most a few thousand
)
MAX_DOWNLOAD = 100_000_000  # bytes
TIMEOUT = 20  # seconds without a byte from the web


class ImageError(ValueError):
    """A picture that cannot be read or written, with its name and what to do."""


def load_image(source: str | os.PathLike | Image.Image, size: tuple[int, int] | None = None,
               area: int | None = None) -> Tensor:  # fmt: skip
    """Read a picture as float32 (1, 3, H, W) in [0, 1].

    source: a path, an http(s) address, or a PIL image. Turned upright by its EXIF orientation; transparency
        is laid over white; 16-bit and float greys are scaled to their white; of an animation the first
        picture is taken.
    size: (width, height) in pixels to fill: scaled with LANCZOS, keeping the aspect, and what protrudes is
        cropped evenly. None keeps the size.
    area: in pixels; a picture with more is scaled down to it, whole.

    Raises ImageError if the picture is missing, damaged, of an unknown kind or larger than 100 megapixels.
    """
    if isinstance(source, Image.Image):
        image = _upright_rgb(source, "The picture")
    elif str(source).lower().startswith(("http://", "https://")):
        image = _read(io.BytesIO(_download(str(source))), f"The picture at {source}")
    else:
        with _open(Path(source).expanduser()) as file:
            image = _read(file, f"The picture {source}")
    if size is not None:
        image = ImageOps.fit(image, _checked_size(size), Image.Resampling.LANCZOS)
    if area is not None and image.width * image.height > area:
        shrink = (area / (image.width * image.height)) ** 0.5
        sides = (max(1, round(side * shrink)) for side in image.size)
        image = image.resize(tuple(sides), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image))  # H W 3
    return pixels.permute(2, 0, 1)[None].contiguous().float() / 255


def to_pil(image: Tensor) -> Image.Image:
    """A (3, H, W) tensor as an 8-bit RGB picture: clamped to [0, 1], times 255, rounded.

    Raises ImageError for another shape or if a value is not a number (NaN).
    """
    if image.ndim != 3 or image.shape[0] != 3:
        shape = tuple(image.shape)
        raise ImageError(f"A picture has the shape (3, H, W), not {shape}; pass one image of a batch.")
    image = image.detach().float()
    if image.isnan().any():
        raise ImageError("The picture holds NaN (not a number), its run has diverged; take a lower lr.")
    pixels = (image.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def save_png(path: str | os.PathLike, image: Tensor | Image.Image, recipe: dict | None = None) -> Path:
    """Write a (3, H, W) tensor or PIL image as PNG, whole or not at all, with the recipe (JSON) inside.

    Raises ImageError naming the path if the disk refuses.
    """
    path = Path(path)
    picture = image if isinstance(image, Image.Image) else to_pil(image)
    info = None if recipe is None else metadata.png_info(json.dumps(recipe, ensure_ascii=False))
    try:
        with atomic(path) as file:
            picture.save(file, format="PNG", pnginfo=info)
    except OSError as error:
        raise ImageError(f"The picture {path} could not be written: {_cause(error)}.") from error
    return path


def read_recipe(path: str | os.PathLike) -> dict:
    """The recipe that `save_png` or `write_video` put into a PNG, MP4, GIF or WebP file.

    Raises ImageError if the file cannot be read or carries none.
    """
    path = Path(path).expanduser()
    _open(path).close()  # for the same words about a missing file
    try:
        text = metadata.extract(path)
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        raise ImageError(f"{path} is not a readable picture or video: {_cause(error)}.") from error
    try:
        recipe = json.loads(text or "")
    except json.JSONDecodeError:
        recipe = None
    if not isinstance(recipe, dict):
        raise ImageError(
            f"{path} carries no vqclip recipe; take the original file, editors and websites often strip it."
        )
    return recipe


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise ImageError(f"There is no picture {path}; check the name and the folder.") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"The picture {path} cannot be opened: {_cause(error)}.") from error


def _download(url: str) -> bytes:
    address = urllib.parse.quote(
        url, safe="%:/?#[]@!$&'()*+,;=~"
    )  # as typed: may hold spaces and any alphabet
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "vqclip"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            data = response.read(MAX_DOWNLOAD + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = f"the server says {error}" if isinstance(error, urllib.error.HTTPError) else _cause(error)
        raise ImageError(f"The picture at {url} cannot be fetched: {cause}.") from error
    if len(data) > MAX_DOWNLOAD:
        raise ImageError(
            f"The picture at {url} has more than {MAX_DOWNLOAD // 10**6} MB; take a smaller one."
        )
    return data


def _read(file: BinaryIO, name: str) -> Image.Image:
    """Decode a file; its header alone decides about the size, so that a hostile one costs nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit speaks for it
            image = Image.open(file)
    except Image.DecompressionBombError:
        raise _too_large(name, "far more") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is of no kind known here; save it as PNG or JPEG.") from None
    except Exception as error:
        raise _damaged(name, error) from error
    with image:
        return _upright_rgb(image, name)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width}x{height}")
    try:
        return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders of damaged files raise whatever they trip over
        raise _damaged(name, error) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_grey_to_bytes(np.asarray(image), image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey_to_bytes(grey: np.ndarray, mode: str) -> np.ndarray:
    """Greys deeper than 8 bit, scaled to 0..255; Pillow's own conversion clips them there instead.

    16-bit files know their white; for 32-bit integers and floats it is the first of 1 (floats only), 255,
    65535 that holds the brightest pixel, or that pixel itself.
    """
    grey = np.nan_to_num(grey.astype(np.float64))
    brightest = grey.max(initial=0)
    whites = [65535] if mode.startswith("I;16") else [255, 65535] if mode == "I" else [1, 255, 65535]
    white = next((w for w in whites if brightest <= w), brightest)
    return (grey / white * 255).clip(0, 255).round().astype(np.uint8)


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = map(int, size)
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ImageError(f"The size {width}x{height} is not usable; take for example 512x512.")
    return width, height


def _too_large(name: str, size: str) -> ImageError:
    return ImageError(f"{name} has more than {MAX_PIXELS // 10**6} megapixels ({size}); shrink it first.")


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} is damaged or cut short ({_cause(error)}); fetch or save it again.")


def _cause(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(getattr(error, "reason", error)) or type(error).__name__
    return said.rstrip(".")
