"""Opening videos: from any reference a row may hold to the sampled frames, or a clear refusal.

Frames are chosen before any is decoded, from what the container says about itself; only those up to
the last chosen one are decoded, and only the chosen ones converted, to upright RGB. Files need
PyAV, the extra `video`; arrays and lists of frames do not.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from jaxr1.media.decoding import VideoFile, VideoInfo, upright
from jaxr1.media.frames import EVERY_FRAME, FrameChoice, check_rate, sample_indices
from jaxr1.media.images import (
    MAX_PIXELS_DECODED,
    ImageSource,
    MediaError,
    check_size,
    describe,
    load_image,
    probe_image,
)
from jaxr1.media.references import StoredMedia

VideoSource: TypeAlias = "str | os.PathLike[str] | bytes | Sequence[ImageSource] | np.ndarray"

Resize: TypeAlias = Callable[[int, int, int], tuple[int, int]]
"""(frames, height, width) of a clip -> the (height, width) to keep it at."""

MAX_PIXELS_KEPT = 1 << 30
"""Pixels of all frames kept of one clip together (1.07 billion, 3.2 GB as RGB)."""


@dataclass(frozen=True, eq=False)
class Video:
    """The frames taken of a clip.

    Attributes:
      frames: uint8[T, H, W, 3], upright RGB.
      indices: int64[T], the place of each in the clip, from 0, ascending.
      total: frames of the clip.
      fps: frames a second of the clip (its average rate); None for frames that came without.
      name: how messages call it.
    """

    frames: np.ndarray
    indices: np.ndarray
    total: int
    fps: float | None
    name: str = "video"

    @property
    def known_fps(self) -> float:
        """`fps`, for whom it must be known.

        Raises:
          MediaError: it is not.
        """
        if self.fps is None:
            raise MediaError(
                f"{self.name}: its frames came without their rate: "
                "give fps beside them, in frames a second"
            )
        return self.fps

    @property
    def sampled_fps(self) -> float:
        """Frames a second of the frames taken, on average: T / total * fps.

        Raises:
          MediaError: the clip's own rate is unknown.
        """
        return len(self.indices) / self.total * self.known_fps


def load_video(
    source: VideoSource,
    choice: FrameChoice = EVERY_FRAME,
    *,
    source_fps: float | None = None,
    resize: Resize | None = None,
    resample: int = int(Image.Resampling.BICUBIC),
    max_pixels_decoded: int = MAX_PIXELS_DECODED,
    max_pixels_kept: int = MAX_PIXELS_KEPT,
) -> Video:
    """Opens a clip and takes some of its frames, chosen by `sample_indices`.

    The display matrix of the container (a phone held upright) is applied; pixels are taken as
    square, and of several video streams the first counts. Frames that an edit list hides are not
    part of the clip. A container that does not say how many frames it holds is read through once,
    without decoding. Where the decoder reaches the end of an undamaged file with fewer frames shown
    than packets read (VP8 has some that are never shown), the clip has as many frames as were
    shown, and is sampled again.

    A damaged frame is an error wherever the decoder can tell, even where that frame is only needed
    for another one. Damage that happens to be valid code cannot be told from a picture (of VP8 and
    VP9 nearly all is), and frames after the last one taken are not looked at. A truncated file is
    an error, but in formats that may end anywhere (MPEG-TS, live recordings).

    Args:
      source: path, `data:` URI with base64, encoded bytes, list of frames (each whatever
        `load_image` takes), or uint8 array [T, H, W, 3].
      choice: which frames to take; every one by default.
      source_fps: frames a second of a list or an array; for a file it replaces the container's
        average rate.
      resize: gives the size frames are kept at, so that a long clip is never held at its full size.
      resample: filter of that resizing, a number of `PIL.Image.Resampling`.
      max_pixels_decoded: clips with more pixels in one frame are refused before decoding.
      max_pixels_kept: clips of which more pixels would be kept in all, after `resize`, are refused.

    Returns:
      A `Video`; its frames share no memory with `source`.

    Raises:
      MediaError: the file is missing, empty, truncated, damaged (the message says at which frame),
        no video in one of `jaxr1.media.decoding.CONTAINERS`, without a video stream or frames, or
        too large; frames differ in size; the array is of another type or shape; `choice` asks for
        frames a second of a clip whose own rate is unknown, or for more frames than there are.
      ValueError: `source_fps` or `resample` out of range.
      ImportError: a file is given and PyAV is not installed.
    """
    name = describe_video(source)
    if isinstance(source, StoredMedia):  # read once for all that is asked of it
        source = source.read()
    file = VideoFile(source, name, max_pixels_decoded)
    info = _probe(source, name, source_fps, max_pixels_decoded)
    while True:
        with _naming(name):
            indices = sample_indices(info.total, info.fps, choice)
        clip = _Clip(name, indices, resize, resample, max_pixels_kept)
        if _is_frames(source):
            found = _copy_into(clip, source, max_pixels_decoded)
        else:
            found = _decode_into(clip, file, info.total)
        if clip.is_full:
            return Video(clip.frames, clip.indices, info.total, info.fps, name)
        # The decoder is at the end. Either frames are missing, or packets are there that show none.
        shown = file.count_shown()
        if not 0 < found < info.total <= shown:
            raise MediaError(
                f"{name}: ends after {found} of {info.total} frames; "
                "it is truncated, or its header counts wrong"
            )
        info = dataclasses.replace(info, total=found)


def probe_video(
    source: VideoSource,
    *,
    source_fps: float | None = None,
    max_pixels_decoded: int = MAX_PIXELS_DECODED,
) -> VideoInfo:
    """Frame count, rate and size of a clip, without decoding.

    A container that holds no count is read through.

    Raises:
      MediaError: as `load_video`, except for damage and truncation.
      ImportError: a file is given and PyAV is not installed.
    """
    return _probe(source, describe_video(source), source_fps, max_pixels_decoded)


def video_hash(frames: np.ndarray) -> str:
    """16 hexadecimal digits of the SHA-256 of a clip, uint8[T, H, W, 3]: equal clips, equal names.

    Shape and bytes count.
    """
    digest = hashlib.sha256("x".join(map(str, frames.shape)).encode() + b":")
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()[:16]


def describe_video(source: Any) -> str:
    """How messages call a video: its path, or what it is and how large."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"video of {len(source)} bytes"
    if isinstance(source, list | tuple):
        return f"list of {len(source)} frames"
    return describe(source)


class _Clip:
    """The frames wanted of a clip, resized and put in their place as they come."""

    def __init__(
        self,
        name: str,
        indices: np.ndarray,
        resize: Resize | None,
        resample: int,
        max_pixels_kept: int,
    ):
        self.name = name
        self.indices = indices
        self.resize = resize
        self.resample = Image.Resampling(resample)
        self.max_pixels_kept = max_pixels_kept
        self.frames = np.empty((0, 0, 0, 3), np.uint8)
        self.size = (0, 0)  # of the frames before resizing
        self.taken = 0

    @property
    def is_full(self) -> bool:
        return self.taken == len(self.indices)

    def wants(self, index: int) -> bool:
        return not self.is_full and bool(self.indices[self.taken] == index)

    def take(self, pixel_hwc: np.ndarray) -> None:
        """Takes the next wanted frame, uint8[H, W, 3].

        Raises:
          MediaError: it is of another size than the first, or all together would be too large.
        """
        size = pixel_hwc.shape[:2]
        if self.taken == 0:
            self.size = size
            self.frames = np.empty((len(self.indices), *self._kept_size(*size), 3), np.uint8)
        elif size != self.size:
            raise MediaError(
                f"{self.name}: frame {self.indices[self.taken]} is {size[1]}x{size[0]}, "
                f"the first is {self.size[1]}x{self.size[0]}"
            )
        height, width = self.frames.shape[1:3]
        if size != (height, width):
            picture = Image.fromarray(pixel_hwc)
            pixel_hwc = np.asarray(picture.resize((width, height), resample=self.resample))
        self.frames[self.taken] = pixel_hwc
        self.taken += 1

    def _kept_size(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is not None:
            with _naming(self.name):
                height, width = self.resize(len(self.indices), height, width)
        if len(self.indices) * height * width > self.max_pixels_kept:
            raise MediaError(
                f"{self.name}: {len(self.indices)} frames of {width}x{height} pixels are more than "
                f"the {self.max_pixels_kept:,} pixels that are kept of a video; "
                "take fewer frames or resize them"
            )
        return height, width


def _is_frames(source: Any) -> bool:
    """Whether a source holds its frames already, and is no file."""
    return isinstance(source, np.ndarray | list | tuple)


def _copy_into(clip: _Clip, source: Any, limit: int) -> int:
    """Takes the wanted frames of a list or an array; gives their number."""
    for index in clip.indices:
        if isinstance(source, np.ndarray):
            clip.take(np.ascontiguousarray(source[index]))
        else:
            with _naming(f"{clip.name}, frame {index}"):
                image = load_image(source[index], max_pixels_decoded=limit)
            clip.take(np.asarray(image))
    return len(clip.indices)


def _decode_into(clip: _Clip, file: VideoFile, total: int) -> int:
    """Decodes a file until the clip has all it wants, or to its end; gives the frames decoded.

    Raises:
      MediaError: a frame on the way is damaged.
    """
    decoded = 0
    with contextlib.closing(file.pictures(total)) as pictures:
        for picture in pictures:
            if clip.wants(decoded):
                clip.take(upright(picture, clip.name))
            decoded += 1
            if clip.is_full:
                break
    return decoded


def _probe(source: Any, name: str, source_fps: float | None, limit: int) -> VideoInfo:
    check_rate("fps of the source", source_fps)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 4 or source.shape[-1] != 3:
            raise MediaError(f"{name}: expected uint8[T, H, W, 3]")
        total, height, width = source.shape[:3]
        check_size(height, width, name, limit)
        return VideoInfo(total, source_fps, height, width)
    if isinstance(source, list | tuple):
        if not source:
            raise MediaError(f"{name}: the video has no frames")
        with _naming(f"{name}, frame 0"):
            height, width = probe_image(source[0], max_pixels_decoded=limit)
        return VideoInfo(len(source), source_fps, height, width)
    return VideoFile(source, name, limit).info(source_fps)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts a name before the messages of what is done inside."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from error
