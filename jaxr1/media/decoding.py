"""Video files: their header, their packets and their pictures, or a clear refusal.

Files are read with PyAV, the extra `video`.
"""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxr1.media.containers import check_whole
from jaxr1.media.images import MediaError, check_size, open_file

# Containers that hold what they show. libav also opens playlists (HLS, DASH, concat), which name
# other files and hosts.
CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif")

_EXPECTED = "a path, bytes, a list of frames or a uint8 array [T, H, W, 3]"
_QUARTER_TOLERANCE = 0.01


@dataclass(frozen=True)
class VideoInfo:
    """What a clip's header says.

    Attributes:
      total: frames.
      fps: frames a second, on average; None where it is unknown.
      height: pixels, as stored.
      width: pixels, as stored.
    """

    total: int
    fps: float | None
    height: int
    width: int


@dataclass(frozen=True)
class Packet:
    """A piece of a stream, with one frame at most.

    Attributes:
      pts: when it is shown, in the stream's unit of time; None where that is unknown.
      is_shown: False where an edit list hides it.
    """

    pts: int | None
    is_shown: bool


class Corrupt(ValueError):
    """Damage that was told without an error, of the frame shown at `pts`."""

    def __init__(self, by: str, pts: int | None):
        super().__init__(f"marked as corrupt by the {by}")
        self.pts = pts


@dataclass(frozen=True, eq=False)
class VideoFile:
    """A video in a container, opened anew for each thing asked of it.

    Attributes:
      source: a path, encoded bytes, or a `data:` URI with base64.
      name: how messages call it.
      max_pixels: a video with more in one frame is refused before decoding.

    Raises:
      MediaError: by every method, where the file is missing, empty, truncated, no video in one of
        `CONTAINERS`, or without a video stream.
      ImportError: by every method, where PyAV is not installed.
    """

    source: Any
    name: str
    max_pixels: int

    def info(self, source_fps: float | None = None) -> VideoInfo:
        """What the header says; a file that holds no count of its frames is read through.

        Args:
          source_fps: frames a second, where the caller knows better than the container.

        Raises:
          MediaError: also where there are no frames, or too large ones.
        """
        with self._opened() as container:
            stream = self._stream(container)
            height, width = stream.codec_context.height, stream.codec_context.width
            if not height or not width:  # what libav leaves of a header it refuses
                raise MediaError(
                    f"{self.name}: a frame has more than the {self.max_pixels:,} pixels that are "
                    "decoded, or its header is damaged"
                )
            check_size(height, width, self.name, self.max_pixels)
            total = int(stream.frames)
            # The count of an mp4 file is that of the packets stored, edit list or not.
            if total and "mp4" in container.format.name:
                total = sum(not entry.is_discard for entry in stream.index_entries)
            # "or" because an unknown rate is None in one release of PyAV and 0/1 in the next.
            rate = source_fps or stream.average_rate or stream.guessed_rate
            seconds = 0.0
            if stream.duration and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
        if total < 1:
            total = self.count_shown()
        if total < 1:
            raise MediaError(f"{self.name}: the video has no frames")
        if not rate and seconds > 0:
            rate = total / seconds
        return VideoInfo(total, float(rate) if rate else None, height, width)

    def packets(self) -> list[Packet]:
        """Reads the file through without decoding: its packets in the order they are stored.

        Raises:
          MediaError: also where it is damaged so that it cannot be read to its end.
        """
        found: list[Packet] = []
        with self._opened() as container:
            try:
                for packet in container.demux(self._stream(container)):
                    if packet.size:  # the last one only flushes
                        found.append(Packet(packet.pts, not packet.is_discard))
            except Exception as error:  # demuxers raise whatever they like on damaged data
                raise self._unreadable(len(found), error) from error
        return found

    def count_shown(self) -> int:
        """How many packets are shown, from reading the file through."""
        return sum(packet.is_shown for packet in self.packets())

    def pictures(self, total: int) -> Generator[Any, None, None]:
        """Decodes the file: PyAV's frames, in the order they are shown, up to its end.

        Args:
          total: frames of the clip, for messages.

        Raises:
          MediaError: also where a frame is damaged; the message says which.
        """
        decoded = 0
        with self._opened() as container:
            stream = self._stream(container)
            # Without "explode" a decoder paints over what it cannot read, and reports nothing.
            limits = {"err_detect": "explode", "max_pixels": str(self.max_pixels)}
            stream.codec_context.options = limits
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                except Exception as error:  # demuxers raise whatever they like on damaged data
                    raise self._unreadable(decoded, error) from error
                if packet is None:
                    return
                try:
                    pictures = decode(packet)
                except Exception as error:  # decoders do too
                    pts = error.pts if isinstance(error, Corrupt) else packet.pts
                    place = self._place(pts) or f"what follows frame {decoded - 1}"
                    raise MediaError(
                        f"{self.name}: damaged: {place} of 0..{total - 1} cannot be decoded "
                        f"({error})"
                    ) from error
                for picture in pictures:
                    yield picture
                    decoded += 1

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """PyAV's container of the file."""
        with open_file(self.source, self.name, _EXPECTED) as file:
            try:
                import av
            except ImportError as error:
                raise ImportError(
                    f"{self.name}: reading video files needs PyAV: pip install av"
                ) from error
            check_whole(file, self.name)
            options = {
                "format_whitelist": ",".join(CONTAINERS),
                # The decoder's own limit holds for what a stream says of itself, which may be more
                # than its container says.
                "max_pixels": str(self.max_pixels),
            }
            try:
                container = av.open(file, options=options, mode="r")
            except Exception as error:  # header parsers raise whatever they like on damaged data
                raise MediaError(
                    f"{self.name}: not a video, or its header is damaged "
                    f"(containers: {', '.join(CONTAINERS)}): {error}"
                ) from error
            with container:
                yield container

    def _stream(self, container: Any) -> Any:
        """The first stream of moving pictures; the cover of an audio file is none."""
        import av

        for stream in container.streams.video:
            if not stream.disposition & av.stream.Disposition.attached_pic:
                if stream.codec_context is None:
                    raise MediaError(
                        f"{self.name}: its video stream is in a codec that is unknown here, "
                        "or its header is damaged"
                    )
                return stream
        raise MediaError(f"{self.name}: no video stream")

    def _unreadable(self, read: int, error: Exception) -> MediaError:
        return MediaError(f"{self.name}: damaged: cannot be read beyond frame {read - 1} ({error})")

    def _place(self, pts: int | None) -> str | None:
        """Which frame is shown at a time: the rank of that time among those of all frames."""
        try:
            packets = self.packets()
        except MediaError:
            return None
        times = sorted(p.pts for p in packets if p.is_shown and p.pts is not None)
        return f"frame {times.index(pts)}" if pts in times else None


def decode(packet: Any) -> list[Any]:
    """The frames that a packet completes; the last packet, an empty one, flushes the decoder.

    Raises:
      Corrupt: the container or the decoder has marked a frame as damaged.
      Exception: whatever the decoder raises of damaged data.
    """
    if packet.is_corrupt:
        raise Corrupt("container", packet.pts)
    pictures = packet.decode()
    for picture in pictures:
        if picture.is_corrupt:
            raise Corrupt("decoder", picture.pts)
    return pictures


def upright(picture: Any, name: str) -> np.ndarray:
    """A decoded frame as uint8[H, W, 3], turned and mirrored as its display matrix says.

    The matrix takes column p and row q of the stored picture to column a * p + c * q and row b * p
    + d * q (plus an offset), as in libavutil/display.h.

    Args:
      picture: PyAV's frame.
      name: how messages call its video.

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
