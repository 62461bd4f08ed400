"""Opening images: from any reference a row may hold to an upright RGB picture, or a refusal."""

import hashlib
import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from jaxr1.media.references import MediaError, StoredMedia, media_reference

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | Mapping[str, Any] | StoredMedia | Image.Image | np.ndarray"
)

MAX_PIXELS_DECODED = 1 << 26
"""Pixels of the largest image that is opened: 67.1 million, 200 MB as RGB."""

# Raster formats whose decoders only decode. Pillow also opens EPS and WMF, which run an outside
# interpreter.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000")

_REFERENCES = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, StoredMedia)
_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 0x0100, 0x0101
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82"
_PNG_KEPT = (b"IHDR", b"eXIf", b"iTXt", b"tEXt", b"zTXt")
_MAX_METADATA = 1 << 20

# Held while Pillow's own size check is off: that one warns or raises without naming the file, and
# ours follows at once.
_open_lock = threading.Lock()


def load_image(source: ImageSource, *, max_pixels_decoded: int = MAX_PIXELS_DECODED) -> Image.Image:
    """Opens an image as upright 8-bit RGB.

    EXIF orientation is applied. Transparency (alpha channel, palette or colour key) is composited
    onto white, as the image processors of transformers do. 16-bit grey is scaled to 8 bits (not
    clipped, as Pillow's own conversion does), CMYK, LAB and the like are converted by Pillow, and
    an animation gives its first frame.

    Args:
      source: path or `file://` address, encoded bytes in any form that `media_reference` reads, PIL
        image, or uint8 array [H, W, 3].
      max_pixels_decoded: larger images are refused before a pixel is decoded.

    Returns:
      A PIL image of mode RGB without metadata; it shares no memory with `source`.

    Raises:
      MediaError: the file is missing, empty, truncated, no image in one of `FORMATS`, or too large;
        the array is empty or of another type or shape.
    """
    name = describe(source)
    if isinstance(source, np.ndarray):
        height, width = _array_size(source, name)
        check_size(height, width, name, max_pixels_decoded)
        return Image.fromarray(np.ascontiguousarray(source)).copy()
    if isinstance(source, Image.Image):
        check_size(source.height, source.width, name, max_pixels_decoded)
        return _upright_rgb(source, name)
    with _opened(source, name) as image:
        check_size(image.height, image.width, name, max_pixels_decoded)
        return _upright_rgb(image, name)


def probe_image(
    source: ImageSource, *, max_pixels_decoded: int = MAX_PIXELS_DECODED
) -> tuple[int, int]:
    """The (height, width) in pixels that `load_image` would return, read from the header.

    A truncated file passes: only decoding finds it.

    Raises:
      MediaError: as `load_image`, except for truncation.
    """
    name = describe(source)
    if isinstance(source, np.ndarray):
        height, width = _array_size(source, name)
        check_size(height, width, name, max_pixels_decoded)
        return height, width
    if isinstance(source, Image.Image):
        return _header_size(source, name, max_pixels_decoded)
    with _opened(source, name) as image:
        return _header_size(image, name, max_pixels_decoded)


def media_hash(image: Image.Image) -> str:
    """16 hexadecimal digits of the SHA-256 of an image: equal pictures, equal names.

    Its size and its RGB bytes count.
    """
    rgb = to_rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()[:16]


def describe(source: Any) -> str:
    """How messages call an image: its path, or what it is and how large."""
    if isinstance(source, StoredMedia):
        return source.name
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if isinstance(text, str) and text.startswith("data:"):
            return f"data URI of {len(text)} characters"
        return repr(text if len(text) <= 300 else text[:297] + "...")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image of {len(source)} bytes"
    if isinstance(source, np.ndarray):
        return f"array {source.dtype}{list(source.shape)}"
    if isinstance(source, Image.Image):
        if origin := getattr(source, "filename", ""):
            return repr(os.fspath(origin))
        return f"{source.mode} image of {source.width}x{source.height}"
    return f"value of type {type(source).__name__}"


def open_file(source: Any, name: str, expected: str) -> BinaryIO:
    """A binary reader of whatever `media_reference` reads; the caller closes it.

    Args:
      source: what the user gave.
      name: how messages call it, see `describe`.
      expected: what messages say should have been given.

    Raises:
      MediaError: no such file, no file at all, zero bytes, unreadable, or a value of another type.
    """
    if not isinstance(source, _REFERENCES):
        what = "the entry is empty: " if source is None else ""
        raise MediaError(f"{name}: {what}expected {expected}")
    try:
        source = media_reference(source)
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from error
    if isinstance(source, bytes):
        if not len(source):
            raise MediaError(f"{name}: no bytes")
        return io.BytesIO(source)
    path = Path(source)
    try:
        if not path.is_file():
            what = "not a file" if path.exists() else "no such file"
            raise MediaError(f"{name}: {what}")
        if path.stat().st_size == 0:
            raise MediaError(f"{name}: the file is empty (0 bytes)")
        return path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{name}: cannot be read ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any Pillow mode as 8-bit RGB, transparency onto white.

    A mode-RGB image is returned as it is. Equal to `convert_to_rgb` of transformers, but for images
    of more than 8 bits, which that clips: mode I;16 is scaled from [0, 65535]; mode I too, unless
    no value exceeds 255; mode F from [0, 1], unless a value exceeds 1.

    Raises:
      MediaError: a wide image with values outside these ranges.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    elif image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits, or of floats, as mode L; transparent pixels become white."""
    value_hw = np.asarray(image).astype(np.float64)
    low, high = float(value_hw.min()), float(value_hw.max())
    if image.mode == "F":
        top = 1.0 if high <= 1.0 else 255.0
    else:
        top = 65535.0 if image.mode != "I" or high > 255 else 255.0
    if not (low >= 0.0 and high <= top):
        raise MediaError(
            f"{describe(image)}: values from {low:g} to {high:g}; expected 0 to {top:g}"
        )
    grey_hw = np.rint(value_hw * (255.0 / top)).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey_hw[value_hw == key] = 255
    return Image.fromarray(grey_hw)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # a decoder raises whatever it likes on damaged data
        raise MediaError(
            f"{name}: damaged or truncated {image.format or 'image'} ({error})"
        ) from error
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata is no reason to lose a picture
        turned = image
    try:
        rgb = to_rgb(turned)
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{name}: cannot convert mode {image.mode} to RGB ({error})") from error
    rgb = rgb.copy()
    rgb.info = {}
    return rgb


def _header_size(image: Image.Image, name: str, limit: int) -> tuple[int, int]:
    """The (height, width) of an opened image when it is shown upright."""
    width, height = image.size
    tags = getattr(image, "tag_v2", {})
    if _ORIENTATION in tags:  # of a TIFF file some releases of Pillow tell the size turned already
        width, height = tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
    check_size(height, width, name, limit)
    orientation = 1
    try:
        file = getattr(image, "fp", None)  # none where it has been decoded
        if image.format == "PNG" and file is not None:
            with _open_header(io.BytesIO(_png_header(file))) as header:
                # the method of the class itself: that of a PNG decodes the pixels
                orientation = Image.Image.getexif(header).get(_ORIENTATION, 1)
        else:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata is no reason to lose a picture
        pass
    if orientation in (5, 6, 7, 8):  # to be shown with its sides exchanged
        return width, height
    return height, width


def _png_header(file: Any) -> bytes:
    """A PNG file with empty pixels: what says how it is to be turned may stand behind them."""
    place = file.tell()
    file.seek(0)
    kept = [file.read(len(_PNG_BEGIN))]
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in _PNG_KEPT and length <= _MAX_METADATA:
            kept += [head, file.read(length + 4)]
        else:
            file.seek(length + 4, os.SEEK_CUR)
    file.seek(place)  # Pillow goes on reading where it was
    return b"".join((*kept, _PNG_END))


def check_size(height: int, width: int, name: str, limit: int) -> None:
    """Refuses a picture without pixels, or with more than `limit`.

    Raises:
      MediaError: it is; the message starts with `name`.
    """
    if height < 1 or width < 1:
        raise MediaError(f"{name}: empty ({width}x{height} pixels)")
    if height * width > limit:
        raise MediaError(
            f"{name}: {width}x{height} pixels are more than the {limit:,} that are decoded"
        )


def _array_size(array: np.ndarray, name: str) -> tuple[int, int]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise MediaError(f"{name}: expected uint8[H, W, 3]")
    return array.shape[0], array.shape[1]


@contextmanager
def _opened(source: Any, name: str) -> Iterator[Image.Image]:
    """Opens the header of a path or of encoded bytes."""
    file = open_file(source, name, "a path, bytes, a PIL image or a uint8 array [H, W, 3]")
    with file:
        try:
            image = _open_header(file)
        except Exception as error:  # header parsers raise whatever they like on damaged data
            raise MediaError(
                f"{name}: not an image, or its header is damaged (formats: {', '.join(FORMATS)})"
            ) from error
        with image:
            yield image


def _open_header(file: Any) -> Image.Image:
    with _open_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            Image.init()
            # A build of Pillow may lack a codec, and `open` takes an unknown name for a failure.
            return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit
