"""Opening videos: from any reference a row may hold to the sampled frames, upright RGB, or a clear
refusal.

Frames are chosen before any is decoded, from what the container says about itself; only those up to
the last chosen one are decoded, and only the chosen ones converted. Files need PyAV, the extra
`video`; arrays and lists of frames do not.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from jaxr1.media.containers import check_whole
from jaxr1.media.frames import Sampling, check_rate, sample_indices
from jaxr1.media.images import (
    MAX_PIXELS_DECODED,
    ImageSource,
    MediaError,
    check_size,
    describe,
    load_image,
    open_file,
    probe_image,
)

VideoSource: TypeAlias = "str | os.PathLike[str] | bytes | Sequence[ImageSource] | np.ndarray"

Resize: TypeAlias = Callable[[int, int, int], tuple[int, int]]
"""(frames, height, width) of a clip -> the (height, width) to keep it at."""

MAX_PIXELS_KEPT = 1 << 30
"""Pixels of all frames kept of one clip together (1.07 billion, 3.2 GB as RGB)."""

# Containers that hold what they show. libav also opens playlists (HLS, DASH, concat), which name
# other files and hosts.
CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif")

_EXPECTED = "a path, bytes, a list of frames or a uint8 array [T, H, W, 3]"
_QUARTER_TOLERANCE = 0.01


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
                f"{self.name}: its frames came without their rate: give fps beside them, in frames a second"
            )
        return self.fps

    @property
    def sampled_fps(self) -> float:
        """Frames a second of the frames taken, on average: T / total * fps.

        Raises:
          MediaError: the clip's own rate is unknown.
        """
        return len(self.indices) / self.total * self.known_fps


class VideoInfo(NamedTuple):
    """What a clip's header says: frames, frames a second (None: unknown), height and width in
    pixels as stored.
    """

    total: int
    fps: float | None
    height: int
    width: int


class _Packet(NamedTuple):
    pts: int | None
    is_shown: bool


def load_video(
    source: VideoSource,
    *,
    source_fps: float | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
    min_frames: int = 4,
    max_frames: int = 768,
    frame_factor: int = 2,
    sampling: Sampling = "stride",
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
      source_fps: frames a second of a list or an array; for a file it replaces the container's
        average rate.
      fps, num_frames, min_frames, max_frames, frame_factor, sampling: see `sample_indices`.
      resize: gives the size frames are kept at, so that a long clip is never held at its full size.
      resample: filter of that resizing, a number of `PIL.Image.Resampling`.
      max_pixels_decoded: clips with more pixels in one frame are refused before decoding.
      max_pixels_kept: clips of which more pixels would be kept in all, after `resize`, are refused.

    Returns:
      A `Video`; its frames share no memory with `source`.

    Raises:
      MediaError: the file is missing, empty, truncated, damaged (the message says at which frame),
        no video in one of `CONTAINERS`, without a video stream or frames, or too large; frames
        differ in size; the array is of another type or shape; `fps` is asked of frames whose own
        rate is unknown; `num_frames` is more than there are.
      ValueError: an option out of range.
      ImportError: a file is given and PyAV is not installed.
    """
    name = describe_video(source)

    def choose(total: int, rate: float | None) -> np.ndarray:
        with _naming(name):
            return sample_indices(
                total,
                rate,
                fps=fps,
                num_frames=num_frames,
                min_frames=min_frames,
                max_frames=max_frames,
                frame_factor=frame_factor,
                sampling=sampling,
            )

    is_file = not isinstance(source, np.ndarray | list | tuple)
    info = _probe(source, name, source_fps, max_pixels_decoded)
    while True:
        clip = _Clip(name, choose(info.total, info.fps), resize, resample, max_pixels_kept)
        if is_file:
            decoded = _decode_into(clip, source, info.total, max_pixels_decoded)
        else:
            decoded = _copy_into(clip, source, max_pixels_decoded)
        if clip.is_full:
            return Video(clip.frames, clip.indices, info.total, info.fps, name)
        # The decoder is at the end. Either frames are missing, or packets are there that show none.
        shown = sum(packet.is_shown for packet in _read_packets(source, name, max_pixels_decoded))
        if not 0 < decoded < info.total <= shown:
            raise MediaError(
                f"{name}: ends after {decoded} of {info.total} frames; it is truncated, or its header counts wrong"
            )
        info = info._replace(total=decoded)


def probe_video(
    source: VideoSource,
    *,
    source_fps: float | None = None,
    max_pixels_decoded: int = MAX_PIXELS_DECODED,
) -> VideoInfo:
    """Frame count, rate and size of a clip, without decoding; a container that holds no count is
    read through.

    Raises:
      MediaError: as `load_video`, except for damage and truncation.
      ImportError: a file is given and PyAV is not installed.
    """
    return _probe(source, describe_video(source), source_fps, max_pixels_decoded)


def video_hash(frames: np.ndarray) -> str:
    """16 hexadecimal digits of the SHA-256 of a clip's shape and bytes, uint8[T, H, W, 3]: equal
    clips, equal names.
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
            pixel_hwc = np.asarray(
                Image.fromarray(pixel_hwc).resize((width, height), resample=self.resample)
            )
        self.frames[self.taken] = pixel_hwc
        self.taken += 1

    def _kept_size(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is not None:
            with _naming(self.name):
                height, width = self.resize(len(self.indices), height, width)
        if len(self.indices) * height * width > self.max_pixels_kept:
            raise MediaError(
                f"{self.name}: {len(self.indices)} frames of {width}x{height} pixels are more than the "
                f"{self.max_pixels_kept:,} pixels that are kept of a video; take fewer frames or resize them"
            )
        return height, width


def _copy_into(clip: _Clip, source: Any, limit: int) -> int:
    """Takes the wanted frames of a list or an array."""
    for index in clip.indices:
        if isinstance(source, np.ndarray):
            clip.take(np.ascontiguousarray(source[index]))
        else:
            with _naming(f"{clip.name}, frame {index}"):
                image = load_image(source[index], max_pixels_decoded=limit)
            clip.take(np.asarray(image))
    return len(clip.indices)


def _decode_into(clip: _Clip, source: Any, total: int, limit: int) -> int:
    """Decodes a file until the clip has all it wants, or to its end; gives the number of frames
    decoded.

    Raises:
      MediaError: a frame on the way is damaged.
    """
    decoded = 0
    with _opened(source, clip.name, limit) as container:
        stream = _video_stream(container, clip.name)
        # Without "explode" a decoder paints over what it cannot read, and reports nothing.
        stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(limit)}
        packets = container.demux(stream)
        while not clip.is_full:
            try:
                packet = next(packets, None)
            except Exception as error:  # demuxers raise whatever they like on damaged data
                raise MediaError(
                    f"{clip.name}: damaged: cannot be read beyond frame {decoded - 1} ({error})"
                ) from error
            if packet is None:
                break
            try:
                pictures = _decode(packet)
            except Exception as error:  # decoders do too
                pts = error.pts if isinstance(error, _Corrupt) else packet.pts
                place = _place(source, clip.name, pts, limit) or f"what follows frame {decoded - 1}"
                raise MediaError(
                    f"{clip.name}: damaged: {place} of 0..{total - 1} cannot be decoded ({error})"
                ) from error
            for picture in pictures:
                if clip.wants(decoded):
                    clip.take(_upright(picture, clip.name))
                decoded += 1
    return decoded


class _Corrupt(ValueError):
    """Damage that was told without an error, of the frame shown at `pts`."""

    def __init__(self, by: str, pts: int | None):
        super().__init__(f"marked as corrupt by the {by}")
        self.pts = pts


def _decode(packet: Any) -> list[Any]:
    """The frames that a packet completes; the last packet, an empty one, flushes the decoder."""
    if packet.is_corrupt:
        raise _Corrupt("container", packet.pts)
    pictures = packet.decode()
    for picture in pictures:
        if picture.is_corrupt:
            raise _Corrupt("decoder", picture.pts)
    return pictures


def _place(source: Any, name: str, pts: int | None, limit: int) -> str | None:
    """Which frame, in the order they are shown, a packet holds: its time's rank among all times."""
    try:
        times = sorted(
            p.pts for p in _read_packets(source, name, limit) if p.is_shown and p.pts is not None
        )
    except MediaError:
        return None
    return f"frame {times.index(pts)}" if pts in times else None


def _upright(picture: Any, name: str) -> np.ndarray:
    """A decoded frame as uint8[H, W, 3], turned and mirrored as its display matrix says.

    The matrix takes column p and row q of the stored picture to column a * p + c * q and row b * p
    + d * q (plus an offset), as in libavutil/display.h.

    Raises:
      MediaError: it cannot be converted to RGB, or is turned by no multiple of 90 degrees.
    """
    try:
        pixel_hwc = picture.to_ndarray(format="rgb24")
        matrix = picture.side_data.get("DISPLAYMATRIX")
    except Exception as error:  # the converter raises whatever it likes
        raise MediaError(
            f"{name}: cannot convert {picture.format.name} to RGB ({error})"
        ) from error
    if matrix is None:
        return pixel_hwc
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, count=5).astype(np.float64)
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if min(straight, crossed) > _QUARTER_TOLERANCE * max(straight, crossed):
        raise MediaError(
            f"{name}: its display matrix turns it by no multiple of 90 degrees ({picture.rotation})"
        )
    if crossed > straight:
        pixel_hwc, rows, columns = pixel_hwc.transpose(1, 0, 2), b, c
    else:
        rows, columns = d, a
    return np.ascontiguousarray(pixel_hwc[:: -1 if rows < 0 else 1, :: -1 if columns < 0 else 1])


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
    with _opened(source, name, limit) as container:
        stream = _video_stream(container, name)
        height, width = stream.codec_context.height, stream.codec_context.width
        if not height or not width:  # what libav leaves of a header it refuses
            raise MediaError(
                f"{name}: a frame has more than the {limit:,} pixels that are decoded, or its header is damaged"
            )
        check_size(height, width, name, limit)
        total = int(stream.frames)
        if (
            total and "mp4" in container.format.name
        ):  # its count is that of the packets stored, edit list or not
            total = sum(not entry.is_discard for entry in stream.index_entries)
        # "or" because an unknown rate is None in one release of PyAV and 0/1 in the next.
        rate = source_fps or stream.average_rate or stream.guessed_rate
        seconds = (
            float(stream.duration * stream.time_base)
            if stream.duration and stream.time_base
            else 0.0
        )
    if total < 1:
        total = sum(packet.is_shown for packet in _read_packets(source, name, limit))
    if total < 1:
        raise MediaError(f"{name}: the video has no frames")
    if not rate and seconds > 0:
        rate = total / seconds
    return VideoInfo(total, float(rate) if rate else None, height, width)


def _read_packets(source: Any, name: str, limit: int) -> list[_Packet]:
    """Reads a file through without decoding: its packets in the order they are stored."""
    found = []
    with _opened(source, name, limit) as container:
        try:
            for packet in container.demux(_video_stream(container, name)):
                if packet.size:  # the last one only flushes
                    found.append(_Packet(packet.pts, not packet.is_discard))
        except Exception as error:  # demuxers raise whatever they like on damaged data
            raise MediaError(
                f"{name}: damaged: cannot be read beyond frame {len(found) - 1} ({error})"
            ) from error
    return found


@contextlib.contextmanager
def _opened(source: Any, name: str, limit: int) -> Iterator[Any]:
    """Opens the container of a path or of encoded bytes."""
    with open_file(source, name, _EXPECTED) as file:
        try:
            import av
        except ImportError as error:
            raise ImportError(f"{name}: reading video files needs PyAV: pip install av") from error
        check_whole(file, name)
        try:
            # The decoder's own limit holds for what a stream says of itself, which may be more than
            # its container says.
            container = av.open(
                file,
                options={"format_whitelist": ",".join(CONTAINERS), "max_pixels": str(limit)},
                mode="r",
            )
        except Exception as error:  # header parsers raise whatever they like on damaged data
            raise MediaError(
                f"{name}: not a video, or its header is damaged (containers: {', '.join(CONTAINERS)}): {error}"
            ) from error
        with container:
            yield container


def _video_stream(container: Any, name: str) -> Any:
    """The first stream of moving pictures; the cover of an audio file is none."""
    import av

    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise MediaError(
                    f"{name}: its video stream is in a codec that is unknown here, or its header is damaged"
                )
            return stream
    raise MediaError(f"{name}: no video stream")


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts a name before the messages of what is done inside."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from error
