"""Videos: the right frames come back from every container; damaged or foreign files are refused."""

import base64
import io
import math
import struct
import sys
import types
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from jaxr1.media import decoding, videos
from jaxr1.media.decoding import VideoInfo
from jaxr1.media.frames import FrameChoice, sample_indices
from jaxr1.media.images import MediaError
from jaxr1.media.videos import load_video, probe_video, video_hash

av = pytest.importorskip("av")

HEIGHT, WIDTH, BITS = 64, 96, 8


def picture(number, height=HEIGHT, width=WIDTH):
    """A frame that holds its number: eight blocks in two rows, one a bit, black or white.

    Survives any lossy codec.
    """
    bits = [(number >> k) & 1 for k in range(BITS)]
    block = np.array(bits, np.uint8).reshape(2, 4) * 255
    grey = np.asarray(Image.fromarray(block).resize((width, height), Image.Resampling.NEAREST))
    return np.repeat(grey[..., None], 3, axis=-1)


def number_of(frame):
    """The number in a frame, uint8[H, W, 3]."""
    height, width = frame.shape[:2]
    h, w = height // 2, width // 4
    means = [
        frame[r * h + 4 : r * h + h - 4, c * w + 4 : c * w + w - 4].mean()
        for r in range(2)
        for c in range(4)
    ]
    assert all(mean < 60 or mean > 195 for mean in means), means
    return sum((mean > 128) << k for k, mean in enumerate(means))


def write(
    path,
    count,
    *,
    fps=10,
    codec="mpeg4",
    format=None,
    options=None,
    muxer=None,
    matrix=None,
    audio=False,
    gop=12,
):
    """Writes a video of `count` numbered frames, with PyAV."""
    with av.open(str(path), "w", format=format, container_options=muxer or {}) as container:
        stream = container.add_stream(
            codec, rate=Fraction(fps).limit_denominator(1001), options=options or {}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = gop
        if codec == "mpeg4":
            stream.codec_context.qmin = stream.codec_context.qmax = 3
        if matrix is not None:
            stream.set_display_matrix(matrix)
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for k in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k), format="rgb24")))
        if count:
            container.mux(stream.encode())
        else:
            container.start_encoding()
        if sound is not None:
            add_sound(container, sound, seconds=count / float(fps))
    return path


def add_sound(container, stream, seconds):
    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def packets_of(path):
    """(position in the file, size, pts) of each video packet, as stored."""
    with av.open(str(path)) as container:
        return [(p.pos, p.size, p.pts) for p in container.demux(video=0) if p.size]


def numbers(video):
    return [number_of(frame) for frame in video.frames]


KINDS = {
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4.mkv": {"codec": "mpeg4"},  # holds no frame count
    "h264.mp4": {"codec": "libx264", "options": {"bf": "3"}},  # stored in another order than shown
    "h264.mkv": {"codec": "libx264", "options": {"bf": "3"}},
    "h264.ts": {"codec": "libx264", "options": {"bf": "3"}},
    "fragments.mp4": {"codec": "libx264", "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "sound.mp4": {"codec": "libx264", "audio": True},
    "sound.mkv": {"codec": "mpeg4", "audio": True},
    "vp8.webm": {
        "codec": "libvpx",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "10", "deadline": "realtime"},
    },
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "12", "deadline": "realtime"},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_frames_come_back(kind, tmp_path, rng):
    count = int(rng.integers(20, 70))
    fps = float(rng.choice([5, 10, 24, 25, 30000 / 1001, 30]))
    path = write(tmp_path / kind, count, fps=fps, **KINDS[kind])
    everything = load_video(path, FrameChoice(max_frames=1000))
    assert numbers(everything) == list(range(count)) and everything.total == count
    assert everything.frames.shape == (count, HEIGHT, WIDTH, 3)
    assert everything.frames.dtype == np.uint8
    assert everything.fps == pytest.approx(fps, rel=2e-3)
    info = probe_video(path)
    assert info == VideoInfo(count, everything.fps, HEIGHT, WIDTH)
    for _ in range(6):
        options = {
            "sampling": str(rng.choice(["stride", "ends"])),
            "min_frames": int(rng.integers(1, 6)),
            "max_frames": int(rng.integers(6, 40)),
            "frame_factor": int(rng.integers(1, 4)),
        }
        if rng.random() < 0.7:
            options["fps"] = float(rng.uniform(0.5, 12))
        else:
            options["num_frames"] = int(rng.integers(1, 16))
        choice = FrameChoice(**options)
        video = load_video(path, choice)
        np.testing.assert_array_equal(video.indices, sample_indices(count, video.fps, choice))
        assert numbers(video) == list(video.indices), choice
        np.testing.assert_array_equal(video.frames, everything.frames[video.indices])


def by_the_letter(total, source_fps, fps, low, high, factor):
    """`sample_frames` of the Qwen2-VL video processor in exact arithmetic, frame by frame."""
    wanted = Fraction(total) / Fraction(source_fps) * Fraction(fps)
    wanted = min(max(wanted, low), min(high, total) // factor * factor, total)
    count = math.floor(wanted / factor) * factor
    return [k * total // count for k in range(count)]


def test_stride_by_the_letter(rng):
    for _ in range(2000):
        factor = int(rng.integers(1, 5))
        total = int(rng.integers(factor, 3000))
        low, high = int(rng.integers(factor, 9)), int(rng.integers(9, 800))
        # Powers of two, so that the quotient is exact in floating point too.
        source_fps, fps = 2.0 ** rng.integers(1, 6), 2.0 ** rng.integers(-2, 4)
        choice = FrameChoice(
            fps=fps, min_frames=low, max_frames=high, frame_factor=factor, sampling="stride"
        )
        found = sample_indices(total, source_fps, choice)
        assert found.tolist() == by_the_letter(total, source_fps, fps, low, high, factor)
        assert found.dtype == np.int64 and (np.diff(found) > 0).all()


def test_drawn_sampling():
    """The drawing in `sample_indices`."""
    stride = FrameChoice(fps=2, frame_factor=2, sampling="stride")
    assert sample_indices(10, 5, stride).tolist() == [0, 2, 5, 7]
    ends = FrameChoice(fps=2, frame_factor=2, sampling="ends")
    assert sample_indices(10, 5, ends).tolist() == [0, 3, 6, 9]


def test_sampling_at_its_borders():
    def indices(total, source_fps=None, **options):
        return sample_indices(total, source_fps, FrameChoice(**options)).tolist()

    assert indices(1, 30, fps=2) == [0]  # shorter than a pair: all of it
    assert indices(3, 30, fps=2) == [0, 1]
    assert indices(3, 30, fps=2, sampling="ends") == [0, 1, 2]
    assert indices(7) == list(range(7)) == sample_indices(7).tolist()
    assert indices(7, max_frames=5) == [0, 1, 3, 5]
    assert indices(7, max_frames=5, sampling="ends") == [0, 2, 3, 4, 6]
    assert indices(100, 1, fps=1, min_frames=1, max_frames=1, frame_factor=2) == [0, 50]
    assert indices(9, num_frames=1) == [0, 4]
    with pytest.raises(MediaError, match="8 frames are wanted of a video of 7"):
        indices(7, num_frames=7)
    with pytest.raises(MediaError, match="9 frames are wanted of a video of 7"):
        indices(7, num_frames=9, sampling="ends")
    with pytest.raises(MediaError, match="no frames"):
        indices(0, 30, fps=2)
    with pytest.raises(MediaError, match="give fps beside the video"):
        indices(10, None, fps=2)
    with pytest.raises(ValueError, match="fps of the source"):
        indices(10, -1.0)
    for options, reason in (
        ({"fps": 2, "num_frames": 4}, "exclude each other"),
        ({"fps": 0}, "fps must be"),
        ({"fps": math.nan}, "fps must be"),
        ({"num_frames": 0}, "num_frames"),
        ({"max_frames": 0}, "max_frames"),
        ({"min_frames": 0}, "min_frames"),
        ({"frame_factor": 0}, "frame_factor"),
        ({"sampling": "middle"}, "stride, ends"),
    ):
        with pytest.raises(ValueError, match=reason):
            FrameChoice(**options)


def test_only_what_is_wanted_is_decoded_and_converted(tmp_path, monkeypatch):
    path = write(tmp_path / "long.mp4", 100, codec="mpeg4")
    seen = {"packets": 0, "pictures": 0}
    decode, upright = decoding.decode, videos.upright

    def count_packet(packet):
        seen["packets"] += 1
        return decode(packet)

    def count_picture(frame, name):
        seen["pictures"] += 1
        return upright(frame, name)

    monkeypatch.setattr(decoding, "decode", count_packet)
    monkeypatch.setattr(videos, "upright", count_picture)
    video = load_video(path, FrameChoice(num_frames=4))
    assert video.indices.tolist() == [0, 25, 50, 75] and numbers(video) == [0, 25, 50, 75]
    assert seen["pictures"] == 4
    assert 76 <= seen["packets"] <= 78  # the decoder may hold one back


def test_every_kind_of_source_gives_the_same_clip(tmp_path, rng):
    path = write(tmp_path / "a.mp4", 30, fps=10)
    data = path.read_bytes()
    uri = "data:video/mp4;base64," + base64.b64encode(data).decode()
    three = FrameChoice(fps=3)
    expected = load_video(path, three)
    assert numbers(expected) == list(expected.indices) == sample_indices(30, 10.0, three).tolist()
    for source in (str(path), data, bytearray(data), uri):
        video = load_video(source, three)
        np.testing.assert_array_equal(video.frames, expected.frames)
        assert (video.total, video.fps) == (30, 10.0)
    array = load_video(path).frames
    images = [Image.fromarray(frame) for frame in array]
    files = [tmp_path / f"{k}.png" for k in range(len(images))]
    for file, image in zip(files, images, strict=True):
        image.save(file)
    for source in (array, list(array), images, tuple(files), [str(file) for file in files]):
        video = load_video(source, three, source_fps=10)
        np.testing.assert_array_equal(video.frames, expected.frames)
        np.testing.assert_array_equal(video.indices, expected.indices)
        assert video_hash(video.frames) == video_hash(expected.frames)
        assert probe_video(source, source_fps=10) == VideoInfo(30, 10, HEIGHT, WIDTH)
    video.frames[:] = 0
    assert array.any()
    assert video_hash(video.frames) != video_hash(expected.frames)
    faster = load_video(path, three, source_fps=30)
    assert faster.indices.tolist() == sample_indices(30, 30, three).tolist()


def test_only_the_wanted_frames_of_a_list_are_opened(tmp_path):
    frames = [tmp_path / "absent.png"] * 10
    for k in (0, 5):
        frames[k] = picture(k)
    assert numbers(load_video(frames, FrameChoice(num_frames=2))) == [0, 5]
    with pytest.raises(
        MediaError, match=r"list of 10 frames, frame 1: .*absent\.png.*no such file"
    ):
        load_video(frames)


def test_rates_are_asked_for_where_they_are_needed():
    array = np.stack([picture(k) for k in range(12)])
    two = FrameChoice(fps=2)
    for source in (array, list(array)):
        with pytest.raises(MediaError, match=r"(array|list of 12 frames).*give fps"):
            load_video(source, two)
        video = load_video(source)
        assert numbers(video) == list(range(12)) and video.fps is None
        with pytest.raises(MediaError, match="give fps"):
            _ = video.sampled_fps
        assert load_video(source, two, source_fps=6).sampled_fps == pytest.approx(2)
    with pytest.raises(ValueError, match="fps of the source"):
        load_video(array, source_fps=0)


# How the stored picture is turned to be shown; (a, b, c, d) of the display matrix, which takes
# column p and row q to column a p + c q and row b p + d q.
TURNS = {
    "as stored": ((1, 0, 0, 1), lambda x: x),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda x: x[::-1]),
    "half turn": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "quarter turn clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "quarter turn counterclockwise": ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
    "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
    "transposed otherwise": ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
}


def with_matrix(data, a, b, c, d):
    """The bytes of an mp4 file with another matrix in its track header.

    ISO/IEC 14496-12, section 8.3.2.
    """
    at = data.index(b"tkhd") + 4 + 40
    fixed = [int(v * 65536) for v in (a, b)]
    # offsets keep the picture in place; nobody looks at them
    x = 65536 * HEIGHT if c < 0 or (a < 0 and not c) else 0
    rows = [*fixed, 0, int(c * 65536), int(d * 65536), 0, x, 0, 1 << 30]
    return data[:at] + struct.pack(">9i", *rows) + data[at + 36 :]


@pytest.mark.parametrize("turn", TURNS)
def test_display_matrix(turn, tmp_path):
    (a, b, c, d), show = TURNS[turn]
    data = write(tmp_path / "a.mp4", 3).read_bytes()
    stored = load_video(data).frames
    shown = load_video(with_matrix(data, a, b, c, d)).frames
    np.testing.assert_array_equal(shown, np.stack([show(frame) for frame in stored]))


def test_a_turn_is_the_containers_own(tmp_path):
    """What PyAV calls a counter-clockwise rotation is one."""
    with av.open(
        io.BytesIO(with_matrix(write(tmp_path / "a.mp4", 3).read_bytes(), 0, -1, 1, 0))
    ) as container:
        assert next(container.decode(video=0)).rotation == 90
    with pytest.raises(MediaError, match="multiple of 90"):
        load_video(with_matrix((tmp_path / "a.mp4").read_bytes(), 0.7, 0.7, -0.7, 0.7))


def test_resizing_while_decoding(tmp_path):
    path = write(tmp_path / "a.mp4", 12)
    whole = load_video(path)
    asked = []

    def resize(frames, height, width):
        asked.append((frames, height, width))
        return 40, 52

    small = load_video(path, resize=resize)
    assert asked == [(12, HEIGHT, WIDTH)]
    expected = [
        np.asarray(Image.fromarray(f).resize((52, 40), Image.Resampling.BICUBIC))
        for f in whole.frames
    ]
    np.testing.assert_array_equal(small.frames, np.stack(expected))
    with pytest.raises(
        MediaError, match=r"a\.mp4.*12 frames of 96x64 pixels are more than the 70,000"
    ):
        load_video(path, max_pixels_kept=70_000)
    load_video(path, resize=resize, max_pixels_kept=12 * 40 * 52)


@pytest.mark.parametrize("kind", ["mpeg4.mp4", "mpeg4.mkv", "h264.mp4", "h264.mkv", "mpeg4.avi"])
@pytest.mark.parametrize("fill", ["flipped", "zeros", "ones", "noise"])
def test_a_damaged_frame_is_named(kind, fill, tmp_path, rng):
    path = write(tmp_path / kind, 40, **KINDS[kind])
    packets = packets_of(path)
    data = bytearray(path.read_bytes())
    times = sorted(pts for _, _, pts in packets) if "avi" not in kind else None
    k = int(rng.integers(10, 25))
    position, size, pts = packets[k]
    with av.open(str(path)) as container:
        stored = next(bytes(p) for i, p in enumerate(container.demux(video=0)) if i == k)
    at = data.index(stored, position)
    body = np.frombuffer(stored, np.uint8)[2:]
    body = {
        "flipped": body ^ 0xFF,
        "zeros": np.zeros_like(body),
        "ones": np.full_like(body, 255),
        "noise": rng.integers(0, 256, body.shape, np.uint8),
    }[fill]
    data[at + 2 : at + size] = body.tobytes()
    path.write_bytes(data)
    frame = k if times is None else times.index(pts)
    with pytest.raises(MediaError, match=rf"damaged: frame {frame} of 0\.\.39") as caught:
        load_video(path)
    assert str(path) in str(caught.value)


def write_texture(path, rng, codec, options):
    """Thirty frames of noise that drifts: packets of kilobytes, each needs the ones before."""
    texture = rng.integers(0, 256, (240, 320, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for k in range(30):
            picture = np.roll(texture, (k, 2 * k), axis=(0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return packets_of(path), path.read_bytes()


def test_damage_that_a_decoder_would_paint_over(tmp_path, rng):
    """HEVC's decoder fills in or leaves out a damaged picture, and says so only when asked to."""
    if "libx265" not in av.codecs_available:
        pytest.skip("PyAV has no HEVC encoder here")
    packets, data = write_texture(
        tmp_path / "a.mp4", rng, "libx265", {"x265-params": "log-level=none"}
    )
    assert load_video(data).total == 30
    k = int(rng.integers(3, 27))
    position, size, pts = packets[k]
    damaged = bytearray(data)
    # behind the length and the kind of the data
    damaged[position + 7 : position + size] = bytes(size - 7)
    frame = sorted(p[2] for p in packets).index(pts)
    with pytest.raises(MediaError, match=rf"frame {frame} of 0\.\.29"):
        load_video(bytes(damaged))


def test_half_a_frame_is_damaged(tmp_path, rng):
    """Of H.264 some such damage is valid code; where it is not, the frame is named."""
    packets, data = write_texture(tmp_path / "a.mp4", rng, "libx264", {"bf": "3"})
    order = sorted(p[2] for p in packets)
    told = []
    for position, size, pts in packets[3:27]:
        damaged = bytearray(data)
        for at in range(position + size // 2, position + size):
            damaged[at] ^= 0xA5
        try:
            load_video(bytes(damaged))
        except MediaError as error:
            told.append(str(error))
            assert f"damaged: frame {order.index(pts)} of 0..29 cannot be decoded" in told[-1]
    assert len(told) >= 12


def test_a_frame_marked_by_the_decoder():
    """Here libav marks the frame only; whether it raises too depends on the encoder's slices."""
    frame = types.SimpleNamespace(is_corrupt=True, pts=7)
    packet = types.SimpleNamespace(is_corrupt=False, decode=lambda: [frame])
    with pytest.raises(ValueError, match="marked as corrupt by the decoder") as caught:
        decoding.decode(packet)
    assert caught.value.pts == 7


def test_a_gap_in_a_transport_stream(tmp_path):
    """MPEG-TS counts its packets: where one is missing, libav marks a frame as corrupt."""
    path = write(tmp_path / "a.ts", 40, codec="libx264")
    data = path.read_bytes()
    pieces = [data[at : at + 188] for at in range(0, len(data), 188)]
    # those of stream 0x100
    video = [k for k, piece in enumerate(pieces) if piece[1] & 0x1F == 1 and piece[2] == 0]
    assert numbers(load_video(data)) == list(range(40))
    del pieces[video[len(video) // 2]]
    path.write_bytes(b"".join(pieces))
    with pytest.raises(
        MediaError,
        match=r"a\.ts.*frame [0-9]+ of 0\.\.[0-9]+ cannot be decoded "
        r"\(marked as corrupt by the con",
    ):
        load_video(path)


def test_damage_beyond_the_last_wanted_frame_is_not_met(tmp_path):
    path = write(tmp_path / "a.mp4", 40)
    position, size, _ = packets_of(path)[35]
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    assert numbers(load_video(path, FrameChoice(num_frames=4))) == [0, 10, 20, 30]
    with pytest.raises(MediaError, match="frame 35"):
        load_video(path, FrameChoice(num_frames=4, sampling="ends"))


def boxes(data):
    """Where the top-level boxes of an mp4 file start."""
    starts = [0]
    while starts[-1] < len(data):
        starts.append(starts[-1] + struct.unpack_from(">I", data, starts[-1])[0])
    return starts


@pytest.mark.parametrize(
    "kind", ["mpeg4.mkv", "h264.mkv", "faststart.mp4", "plain.mp4", "mpeg4.avi", "fragments.mp4"]
)
def test_truncated_files(kind, tmp_path, rng):
    settings = KINDS.get(
        kind, {"muxer": {"movflags": "faststart"} if kind == "faststart.mp4" else {}}
    )
    path = write(tmp_path / kind, 60, **settings)
    data = path.read_bytes()
    packets = packets_of(path)
    assert numbers(load_video(data)) == list(range(60))
    # Fragments are made to end anywhere: a file cut where a box starts (or just behind, inside its
    # head) is a shorter one.
    whole = {at + k for at in boxes(data) for k in range(8)} if kind == "fragments.mp4" else set()
    for length in {*rng.integers(1, max(at for at, *_ in packets), 40).tolist()} - whole:
        path.write_bytes(data[:length])
        with pytest.raises(MediaError, match=kind) as caught:
            load_video(path)
        assert kind.endswith("avi") or length < 300 or "truncated" in str(caught.value)


def test_files_that_may_end_anywhere(tmp_path):
    """A live recording has no length; what is behind an mp4 file's last box is ignored."""
    path = write(tmp_path / "live.mkv", 30, muxer={"live": "1"})
    data = path.read_bytes()
    assert numbers(load_video(data)) == list(range(30))
    position = packets_of(path)[20][0]
    assert numbers(load_video(data[:position])) == list(range(20))
    data = write(tmp_path / "a.mp4", 30).read_bytes()
    for tail in (b"\0" * 5, b"\0" * 500, b"\xff\xfe\xfd\xfc" * 9):
        assert numbers(load_video(data + tail)) == list(range(30))


def test_frames_hidden_by_an_edit_list(tmp_path):
    """A clip cut without re-encoding holds frames that are not shown: those shown are the clip."""
    path = write(tmp_path / "cut.mp4", 40)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        ticks = int(Fraction(1, 10) / container.streams.video[0].time_base)
    at = data.index(b"elst") + 4
    version, entries, duration, start = struct.unpack(">IIIi", data[at : at + 16])
    assert (version, entries, start) == (0, 1, 0)
    hidden = 15
    data[at + 8 : at + 16] = struct.pack(">Ii", duration * (40 - hidden) // 40, hidden * ticks)
    path.write_bytes(data)
    video = load_video(path)
    assert numbers(video) == list(range(hidden, 40)) and video.total == 40 - hidden
    video = load_video(path, FrameChoice(num_frames=4, sampling="ends"))
    assert numbers(video) == [15, 23, 31, 39]


def not_coded(packet):
    """The packet without its picture (ISO/IEC 14496-2, section 6.2.5: vop_coded = 0)."""
    bits = "".join(f"{byte:08b}" for byte in bytes(packet))
    kind = bits.index(f"{0x1B6:032b}") + 32
    marker = bits.index("0", kind + 2) + 1  # after a one for each second passed
    # predicted; at the same time, in tenths between two markers
    header = bits[:kind] + "01" + bits[kind + 2 : marker + 6] + "0"
    header += "0" + "1" * (-(len(header) + 1) % 8)  # stuffing up to a whole byte
    return int(header, 2).to_bytes(len(header) // 8, "big")


@pytest.mark.parametrize("kind", ["empty.mkv", "empty.mp4"])
def test_packets_that_show_nothing(kind, tmp_path):
    """Some streams hold packets without a picture: the clip has as many frames as are shown."""
    source = write(tmp_path / "a.mkv", 40, gop=0)  # every frame on its own
    with av.open(str(source)) as old, av.open(str(tmp_path / kind), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for k, packet in enumerate(old.demux(video=0)):
            if packet.size:
                data = not_coded(packet) if k in (20, 30, 35) else bytes(packet)
                copy = av.Packet(data)
                copy.stream, copy.time_base = stream, packet.time_base
                copy.pts, copy.dts = packet.pts, packet.dts
                copy.is_keyframe, copy.duration = packet.is_keyframe, 100
                new.mux(copy)
    shown = [k for k in range(40) if k not in (20, 30, 35)]
    assert len(packets_of(tmp_path / kind)) == probe_video(tmp_path / kind).total == 40
    video = load_video(tmp_path / kind)
    assert numbers(video) == shown and video.total == 37
    video = load_video(tmp_path / kind, FrameChoice(num_frames=5, sampling="ends"))
    assert numbers(video) == [shown[k] for k in (0, 9, 18, 27, 36)]


def test_missing_empty_and_foreign_files(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("I am no video " * 100)
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "concat.txt").write_text("ffconcat version 1.0\nfile a.ts\n")
    write(tmp_path / "a.ts", 12, codec="libx264")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        add_sound(container, container.add_stream("aac", rate=16000, layout="mono"), seconds=0.5)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1000), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = 16000, 0
        container.mux([*stream.encode(frame), *stream.encode()])
    cases = {
        "absent.mp4": "no such file",
        "empty.mp4": "empty",
        "text.mp4": "not a video",
        "picture.png": "not a video",
        "list.m3u8": "not a video",  # libav would open what it names
        "concat.txt": "not a video",
        "sound.mp4": "no video stream",
        "sound.wav": "not a video",
        ".": "not a file",
    }
    for name, reason in cases.items():
        for function in (load_video, probe_video):
            with pytest.raises(MediaError, match=reason) as caught:
                function(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)
    for source, reason in (
        (b"", "no bytes"),
        (b"nonsense", "not a video"),
        (3, "expected a path"),
        (None, "expected"),
    ):
        for function in (load_video, probe_video):
            with pytest.raises(MediaError, match=reason):
                function(source)


def test_a_video_without_frames(tmp_path):
    for name in ("none.mp4", "none.mkv"):
        path = write(tmp_path / name, 0)
        for function in (load_video, probe_video):
            with pytest.raises(
                MediaError, match=rf"{name}.*no (frames|video stream)|{name}.*not a video"
            ):
                function(path)
    for source in ([], np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(MediaError, match="no frames"):
            load_video(source)


def test_the_cover_of_an_audio_file_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG")
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=16000, layout="mono")
        packet = av.Packet(file.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, Fraction(1, 1)
        container.mux(packet)
        add_sound(container, sound, seconds=0.5)
    with pytest.raises(MediaError, match="no video stream"):
        load_video(path)


def test_arrays_and_lists_of_another_form():
    for array in (
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
    ):
        with pytest.raises(MediaError, match=r"expected uint8\[T, H, W, 3\]"):
            load_video(array)
    with pytest.raises(MediaError, match="empty"):
        load_video(np.zeros((2, 0, 8, 3), np.uint8))
    with pytest.raises(MediaError, match=r"frame 2 is 32x64, the first is 96x64"):
        load_video([picture(0), picture(1), picture(2, width=32)])
    with pytest.raises(MediaError, match=r"list of 2 frames, frame 1: .*expected"):
        load_video([picture(0), 7])


def test_large_frames_are_refused_before_decoding(tmp_path, monkeypatch):
    path = write(tmp_path / "large.mp4", 6)

    def decode(packet):
        raise AssertionError("decoded")

    monkeypatch.setattr(decoding, "decode", decode)
    for source in (path, path.read_bytes(), np.zeros((2, 64, 96, 3), np.uint8), [picture(0)]):
        for function in (load_video, probe_video):
            with pytest.raises(MediaError, match=r"more than the 6,000 (pixels )?that are decoded"):
                function(source, max_pixels_decoded=6000)


def test_without_pyav(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", 3)
    monkeypatch.setitem(sys.modules, "av", None)
    for function in (load_video, probe_video):
        with pytest.raises(ImportError, match=r"a\.mp4.*pip install av"):
            function(path)
    assert load_video(np.zeros((2, 8, 8, 3), np.uint8)).total == 2  # arrays do without
