"""Decode one picture that somebody else made: bytes in, a float tensor [channels, height, width] in [0, 1] out.

Only plain raster decoders of Pillow are allowed: EPS would start Ghostscript, others are rarely looked after. Size is
checked before a single pixel is decoded.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from laocoon.core.errors import BrokenFile
from laocoon.files.wording import first_line, printable

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".pbm")
LARGEST_BYTES = 64 * 2**20
MOST_PIXELS = 64_000_000
LONGEST_SIDE = 32_768
SMALLEST_SIDE = 4  # smaller ones hold nothing to look at, unless the model itself is smaller
_FAILURES = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    ZeroDivisionError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Frame:
    """What a picture must become; `shape` None: whatever it is."""

    shape: tuple[int, int, int] | None = None  # channels, height, width
    fit: str = "stretch"  # or "crop": keep the proportions, cut what sticks out


def decode(data: bytes, name: str, frame: Frame) -> Tensor:
    """The picture in `data`, fitted to the frame. Raises BrokenFile, which names the file."""
    shown = printable(name, 120)
    if not data:
        raise BrokenFile(f"the image {shown} is empty (0 bytes).", "Fetch it again, or leave it out.")
    if len(data) > LARGEST_BYTES:
        raise BrokenFile(f"the image {shown} has {len(data)} bytes.", f"At most {LARGEST_BYTES} are read.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs and odd tags; sizes are judged below
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _bomb(shown, first_line(error, 100)) from None
    except Image.UnidentifiedImageError:
        raise BrokenFile(
            f"{shown} is not an image that can be read (it begins with {printable(data[:8])}).",
            f"Known: {', '.join(FORMATS)}.",
        ) from None
    except _FAILURES as error:
        raise _broken(shown, error) from None
    width, height = picture.size
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise _bomb(shown, f"{width} x {height} pixels")
    least = min(SMALLEST_SIDE, *(frame.shape or (0, SMALLEST_SIDE, SMALLEST_SIDE))[1:])
    if min(width, height) < least:
        raise BrokenFile(f"the image {shown} has {width} x {height} pixels.", f"At least {least} a side are needed.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _fitted(_upright(picture, frame), frame)
    except Image.DecompressionBombError as error:
        raise _bomb(shown, first_line(error, 100)) from None
    except _FAILURES as error:
        raise _broken(shown, error) from None


def _bomb(shown: str, size: str) -> BrokenFile:
    return BrokenFile(
        f"the image {shown} is too large ({size}).",
        f"At most {MOST_PIXELS} pixels, {LONGEST_SIDE} a side; make it smaller or leave it out.",
    )


def _broken(shown: str, error: BaseException) -> BrokenFile:
    return BrokenFile(
        f"the image {shown} is damaged or cut off ({first_line(error, 100)}).", "Fetch it again, or leave it out."
    )


def _upright(picture: Image.Image, frame: Frame) -> Image.Image:
    """Decoded, turned as its EXIF tag says, in one of the modes L, RGB, RGBA or F (grey floats from 0 to 1)."""
    if frame.shape is not None and picture.format == "JPEG":
        side = 2 * max(frame.shape[1:])
        picture.draft(None, (side, side))  # decodes large photographs at a fraction, never under twice the size wanted
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits a pixel
        values = np.asarray(picture).astype(np.float32)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError("its pixels are neither 8 nor 16 bits")
        return Image.fromarray(values / 65535)
    if picture.mode == "F":
        values = np.asarray(picture)
        if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 255:
            raise ValueError("its pixels are not numbers from 0 to 255")
        return picture if values.max(initial=0) <= 1 else Image.fromarray(values / 255)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode in ("L", "1") else "RGB")


def _fitted(picture: Image.Image, frame: Frame) -> Tensor:
    channels = frame.shape[0] if frame.shape else 1 if picture.mode in ("L", "F") else 3
    if picture.mode == "RGBA" and channels != 4:
        flat = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(flat, picture).convert("RGB")
    if picture.mode != "F":
        picture = picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    if frame.shape is not None:
        size = (frame.shape[2], frame.shape[1])
        if frame.fit == "crop":
            picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
        elif picture.size != size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)  # Pillow's bilinear filter is antialiased
    values = torch.from_numpy(np.array(picture, dtype=np.float32))
    if picture.mode == "F":
        grey = values.clamp(0, 1).unsqueeze(0)
        full = grey.expand(min(channels, 3), -1, -1)
        return torch.cat([full, torch.ones_like(grey)]) if channels == 4 else full.clone()
    return values.unsqueeze(0) / 255 if channels == 1 else values.permute(2, 0, 1).contiguous() / 255
