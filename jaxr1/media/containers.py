"""Whether a video file is whole, from the sizes that its container writes down."""

import os
from typing import BinaryIO

from jaxr1.media.images import MediaError

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide")


def check_whole(file: BinaryIO, name: str) -> None:
    """Refuses an mp4 or Matroska file that ends before its outermost parts do.

    libav takes such a file for a shorter clip.

    Raises:
      MediaError: the file is truncated.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(4096)
    if head.startswith(_EBML):
        promised = _segment_end(head)
    elif head[4:8] in _BOXES:
        promised = _boxes_end(file, size)
    else:
        promised = None
    file.seek(0)
    if promised is not None and promised > size:
        raise MediaError(f"{name}: truncated: it has {size:,} bytes of {promised:,}")


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last of an mp4 file's top-level boxes ends (ISO/IEC 14496-12, section 4.2)."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        # 0 is up to the end; what is no box after the last one is nobody's
        if length < 8 or not head[4:8].isalnum():
            return size
        at += length
    return at


def _segment_end(head: bytes) -> int | None:
    """Where a Matroska file's segment ends (RFC 8794, section 4); None in live recordings."""
    length, at = _variable_int(head, len(_EBML))
    if length is None or not head.startswith(_SEGMENT, at + length):
        return None
    length, at = _variable_int(head, at + length + len(_SEGMENT))
    return None if length is None else at + length


def _variable_int(head: bytes, at: int) -> tuple[int | None, int]:
    """A length of EBML, None for an unknown one, and where it ends."""
    # leading zero bits tell how many bytes it has
    width = 9 - head[at].bit_length() if at < len(head) else 9
    if width > 8:
        return None, at
    unknown = (1 << 7 * width) - 1
    value = int.from_bytes(head[at : at + width], "big") & unknown
    return None if value == unknown else value, at + width
