"""A text inside a PNG, GIF, WebP or MP4 file, and out again: the places each format has for it.

PNG and MP4 writers put it in while writing (`png_info`, `ffmetadata`); a finished GIF or WebP gets it from
`embed`, because ffmpeg, which writes those, has no way to.
"""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
from PIL import Image, PngImagePlugin

from .files import atomic

PNG_KEY = "vqclip"
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
_IMAGE_DESCRIPTION = 0x010E  # the EXIF tag


def png_info(text: str) -> PngImagePlugin.PngInfo:
    """The text as an uncompressed UTF-8 iTXt chunk named "vqclip", for `Image.save(pnginfo=...)`."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(PNG_KEY, text)
    return info


def ffmetadata(text: str) -> str:
    """The text as comment in ffmpeg's metadata file format; a long recipe would not fit a command line."""
    return ";FFMETADATA1\ncomment=" + re.sub(r"([=;#\\\n])", r"\\\1", text) + "\n"


def embed(path: Path, text: str) -> None:
    """Put the text into a finished GIF (as comment) or animated WebP (as EXIF image description).

    text: ASCII, which JSON can always be. The file is replaced whole or, after an error, left as it was.
    """
    data = text.encode("ascii")
    {".gif": _embed_gif, ".webp": _embed_webp}[path.suffix.lower()](path, data)


def extract(path: Path) -> str | None:
    """The text that the file carries, or None. Raises OSError if it is no picture or video."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return _video_comment(path)
    with Image.open(path) as image:
        if image.format == "PNG":
            return image.text.get(PNG_KEY)
        if image.format == "GIF":
            return image.info.get("comment", b"").decode("utf-8", "replace") or None
        return image.getexif().get(_IMAGE_DESCRIPTION)


def _embed_gif(path: Path, data: bytes) -> None:
    """A comment extension after the header, where readers find it before the first picture (GIF89a)."""
    blocks = [data[i : i + 255] for i in range(0, len(data), 255)]
    comment = b"\x21\xfe" + b"".join(bytes([len(b)]) + b for b in blocks) + b"\x00"
    with open(path, "rb") as source, atomic(path) as out:
        header = source.read(13)
        colours = 3 << ((header[10] & 7) + 1) if header[10] & 0x80 else 0  # bytes of the global palette
        out.write(header + source.read(colours) + comment)
        shutil.copyfileobj(source, out)


def _embed_webp(path: Path, data: bytes) -> None:
    """An EXIF chunk at the end, announced in the VP8X header (WebP container specification, 2.7)."""
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = data.decode("ascii")
    payload = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"EXIF" + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    with Image.open(path) as image:
        canvas = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    with open(path, "rb") as source, atomic(path) as out:
        source.seek(12)
        extended = bytearray(source.read(18))
        if (
            extended[:4] != b"VP8X"
        ):  # what is left of an animation of equal frames: a picture without this header
            source.seek(12)
            extended = bytearray(b"VP8X" + struct.pack("<II", 10, 0) + canvas)
        extended[8] |= 0x08
        out.write(bytes(12) + extended)
        shutil.copyfileobj(source, out)
        out.write(chunk)
        size = out.tell() - 8
        out.seek(0)
        out.write(b"RIFF" + struct.pack("<I", size) + b"WEBP")


def _video_comment(path: Path) -> str | None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(path.absolute())]
    done = subprocess.run([*command, "-f", "ffmetadata", "-"], capture_output=True)
    if done.returncode:
        raise OSError(done.stderr.decode("utf-8", "replace").strip().splitlines()[-1])
    comment = re.search(
        r"^comment=((?:\\.|[^\\\n])*)", done.stdout.decode("utf-8", "replace"), re.MULTILINE | re.DOTALL
    )
    return re.sub(r"\\(.)", r"\1", comment[1], flags=re.DOTALL) if comment else None
