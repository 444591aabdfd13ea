"""One picture: from a path, bytes, a PIL image or an array to uint8 [C, H, W]; what cannot be read says why."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".webp", ".tif", ".tiff")
# Raster formats only: among the others of PIL are some that start a program (EPS). Cheap ones first.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
WHOLE = (0.0, 0.0, 1.0, 1.0)  # a picture that nothing is cut off
_GREY_MODES = {"1", "L", "LA", "La", "I"}


class BadPicture(Exception):
    """A picture that cannot be read; the message says why."""


class Decoded(NamedTuple):
    """uint8 [C, H, W], and the height and width of the picture before it was scaled."""

    pixels: np.ndarray
    height: int
    width: int


@dataclass(frozen=True)
class Decoder:
    """What every picture is made into.

    resize: scale to height x width (bilinear, both sides, so a picture of another shape is squashed);
        else another size is an error.
    crop: shares of the picture to keep, as (top, left, bottom, right), before it is scaled.
    grey_guessed: channels=1 was guessed from a sample, so a coloured picture is an error, not made grey.
    """

    channels: int
    height: int
    width: int
    resize: bool = False
    grey_guessed: bool = False
    crop: tuple[float, float, float, float] = WHOLE

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def decode(self, given: object, folder: Path | None = None) -> Decoded:
        """A picture in any of the forms of `open_picture`. Raises BadPicture, DlrunError."""
        with reading():
            picture = upright(open_picture(given, folder))
            if self.grey_guessed and not is_grey(picture):
                raise DlrunError(
                    "the data has grey and coloured pictures",
                    "set data.channels=3, or data.channels=1 to make all of them grey",
                )
            return Decoded(self._to_array(picture), picture.height, picture.width)

    def _to_array(self, picture: Image) -> np.ndarray:
        picture = to_mode(picture, "L" if self.channels == 1 else "RGB")
        if picture.size != (self.width, self.height) or self.crop != WHOLE:
            if not self.resize:
                raise DlrunError(
                    f"pictures of several sizes: {self.width}x{self.height} and {picture.width}x{picture.height}",
                    f"scale them all: data.image_size={max(self.width, self.height)}",
                )
            top, left, bottom, right = self.crop
            kept = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
            picture = picture.resize((self.width, self.height), 2, box=kept)  # 2 is bilinear, with antialiasing
        pixels = np.asarray(picture)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)


def height_width(size: int | Sequence | None, setting: str) -> tuple[int, int] | None:
    """Height and width of what a user set: one number for a square, two, or nothing. Raises DlrunError."""
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
        return sides[0], sides[1]
    expected = "a number of pixels above 0" if isinstance(size, int) else "[height, width] in pixels above 0"
    raise DlrunError(f"{setting}: {size} is not {expected}")


def cropped(crop: Sequence | None, size: int | Sequence | None) -> tuple[float, float, float, float]:
    """The shares of a picture to keep, of what a user set. Raises DlrunError."""
    if crop is None:
        return WHOLE
    numbers = [side for side in crop if type(side) in (int, float)]
    if len(numbers) != 4 or not (0 <= crop[0] < crop[2] <= 1 and 0 <= crop[1] < crop[3] <= 1):
        raise DlrunError(
            f"data.crop: {list(crop)} is not [top, left, bottom, right] in shares of the picture",
            "e.g. data.crop=[0.5,0,1,1] keeps the lower half",
        )
    if size is None:
        raise DlrunError("data.crop needs the size that the rest is scaled to", "e.g. data.image_size=[66,200]")
    return crop[0], crop[1], crop[2], crop[3]


@contextmanager
def reading() -> Iterator[None]:
    """Whatever a decoder raises on a damaged file becomes BadPicture; PIL's own errors say little of it."""
    try:
        yield
    except (DlrunError, BadPicture):
        raise
    except MemoryError as error:
        raise BadPicture("too large for the memory") from error
    except Exception as error:
        raise BadPicture(_reason(error)) from error


@contextmanager
def strictly() -> Iterator[None]:
    """PIL's warning of a decompression bomb counts as an error. Once around many pictures: it takes microseconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata: the pixels decide
        warnings.filterwarnings("error", message=".*decompression bomb.*")
        yield


def open_picture(given: object, folder: Path | None = None) -> Image:
    """A PIL image, its pixels perhaps not read yet, of:

    a path (relative to folder), the bytes of a file, {"bytes": …, "path": …} as `datasets` has it (bytes may be
    base64 text), a PIL image, or pixels 0..255 as an array or nested lists of H x W or H x W x C.
    """
    from PIL import Image

    if isinstance(given, dict):
        data = given.get("bytes")
        data = base64.b64decode(data, validate=True) if isinstance(data, str) else data
        given = given.get("path") if data is None else data
    if given is None:
        raise BadPicture("no picture")
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, (str, os.PathLike)):
        given = _file(given, folder).read_bytes()  # whole: a picture that is only looked at would keep its file open
    if isinstance(given, (bytes, bytearray, memoryview)):
        if not len(given):
            raise BadPicture("0 bytes")
        return Image.open(io.BytesIO(given), formats=_FORMATS)
    return Image.fromarray(_pixels(np.asarray(given)))


def _file(given: str | os.PathLike, folder: Path | None) -> Path:
    path = Path(given).expanduser()
    path = folder / path if folder is not None else path
    if not path.is_file():  # a pipe would block for ever
        raise BadPicture("no such file" if not path.exists() else "not a file")
    return path


def _pixels(values: np.ndarray) -> np.ndarray:
    """uint8 H x W or H x W x 3 of numbers in 0..255."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or not values.size:
        raise BadPicture(f"an array of shape {list(values.shape)}; expected H x W or H x W x C with 1, 3 or 4 channels")
    if values.dtype.kind not in "buif" or not np.isfinite(values).all():
        raise BadPicture("pixels that are not numbers")
    if values.min() < 0 or values.max() > 255:
        raise BadPicture(f"pixels in {values.min():g}..{values.max():g}; expected 0..255")
    if values.dtype.kind == "f" and values.max() <= 1 and (values % 1).any():
        raise BadPicture("pixels in 0..1; expected 0..255")
    return np.ascontiguousarray(np.rint(values).astype(np.uint8))


def upright(picture: Image) -> Image:
    """The picture as its EXIF orientation wants it seen. Metadata that cannot be read is ignored."""
    if "exif" not in picture.info and picture.format != "TIFF":
        return picture
    from PIL import ImageOps

    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata of sound pixels
        return picture
    return ImageOps.exif_transpose(picture) if orientation != 1 else picture


def is_grey(picture: Image) -> bool:
    """Whether the file's own pixels have one channel."""
    return picture.mode in _GREY_MODES or picture.mode.startswith("I;16")


def to_mode(picture: Image, mode: str) -> Image:
    """The picture in "L" or "RGB": 16 bits scaled to 8, palettes looked up, transparency dropped, CMYK converted."""
    if picture.mode == mode:
        return picture
    if picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    elif picture.mode == "F":
        raise BadPicture("32-bit floating-point pixels")
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert(mode)


def _eight_bits(picture: Image) -> Image:
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadPicture("32-bit pixels beyond 0..65535")
    is_wide = picture.mode != "I" or values.max() > 255  # mode I is any integer: a small one is 8 bits already
    return Image.fromarray(((values + 128) // 257 if is_wide else values).astype(np.uint8))


def _reason(error: Exception) -> str:
    """A line a person can use, of what PIL or the file system raised."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).split("\n")[0] or type(error).__name__
