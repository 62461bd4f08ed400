"""How many tokens media become is known from their headers: what is too long is never decoded."""

import dataclasses
import io
import struct

import numpy as np
import pytest
from PIL import Image
from reference import random_image

import jaxr1
from jaxr1.inputs import units
from jaxr1.inputs.sizes import TooLong
from jaxr1.inputs.units import AtHand, at_hand
from jaxr1.media.images import MediaError, describe
from jaxr1.media.references import StoredMedia

MODELS = ("tiny", "tiny-qwen2_5_vl", "tiny-qwen3_vl", "tiny-internvl")


def asked(*parts):
    return jaxr1.Prompt([{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}])


def image(source):
    return {"type": "image", "image": source}


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def cut(rng, height: int, width: int) -> bytes:
    """A PNG whose header is whole, and whose pixels are not."""
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = png(Image.fromarray(noise))
    return data[: len(data) // 2]


def mp4(rng, frames: int, height: int, width: int, *, turned: bool) -> bytes:
    """A clip in memory; `turned` by a quarter when it is shown."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    data = file.getvalue()
    if turned:  # ISO/IEC 14496-12, section 8.3.2
        at, one = data.index(b"tkhd") + 44, 65536
        matrix = struct.pack(">9i", 0, -one, 0, one, 0, 0, 0, 0, 1 << 30)
        data = data[:at] + matrix + data[at + 36 :]
    return data


@pytest.mark.parametrize("name", MODELS)
def test_headers_say_what_decoding_finds(name, rng):
    """Ids, places and positions of pictures in any form, and of clips, upright ones and others."""
    processor = jaxr1.load_processor(name)
    sideways = random_image(rng, 30, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    sideways.save(turned, "JPEG", exif=exif)
    pictures = [random_image(rng), png(random_image(rng)), turned.getvalue()]
    pictures.append(rng.integers(0, 256, (*rng.integers(20, 300, 2), 3), dtype=np.uint8))
    prompts = [asked(*map(image, pictures))]
    if processor.videos is not None:
        small = processor.videos.replace(min_pixels=28 * 28, max_pixels=16 * 56 * 56)
        processor = dataclasses.replace(processor, videos=small)
        frames = rng.integers(0, 256, (7, 60, 90, 3), dtype=np.uint8)
        clips = [{"type": "video", "video": frames, "fps": 2.0}]
        for is_turned in (False, True):
            data = mp4(rng, int(rng.integers(5, 30)), 48, 96, turned=is_turned)
            clips.append({"type": "video", "video": data})
        prompts += [asked(clips[0], image(pictures[0])), asked(clips[1]), asked(clips[2])]
    for prompt in prompts:
        whole, measured = processor.encode(prompt), processor.encode(prompt, decode=False)
        assert not measured.patches and not measured.hashes and whole.patches
        assert [len(p) for p in whole.patches] == [t * h * w for t, h, w in whole.grids]
        np.testing.assert_array_equal(measured.token_ids, whole.token_ids)
        np.testing.assert_array_equal(measured.media_index, whole.media_index)
        area = lambda grids: [h * w for _, h, w in grids]
        assert area(measured.grids) == area(whole.grids)
        if prompt is not prompts[-1] or len(prompts) == 1:  # the one that is turned
            assert measured.grids == whole.grids
            np.testing.assert_array_equal(measured.position, whole.position)


@pytest.mark.parametrize("name", ["tiny", "tiny-internvl"])
def test_what_is_too_long_is_not_decoded(name, rng):
    """Its pixels are cut off, and nobody looks at them; a prompt that fits says that they are."""
    processor = jaxr1.load_processor(name)
    prompt = asked(image(cut(rng, 100, 150)))
    tokens = len(processor.encode(prompt, decode=False))
    with pytest.raises(TooLong, match=rf"^the prompt has {tokens} tokens \(\d+ of them for 1 im"):
        processor.encode(prompt, tokens - 1)
    with pytest.raises(TooLong, match=r"^an image has \d+ patches, over the limit of 1 \(buckets"):
        processor.encode(prompt, tokens, 1)
    with pytest.raises(MediaError, match="truncated"):
        processor.encode(prompt, tokens)


def test_a_clip_that_is_too_long_is_not_decoded(rng):
    processor = jaxr1.load_processor("tiny")
    frames = [random_image(rng, 60, 61), *(cut(rng, 60, 60) for _ in range(7))]
    prompt = asked({"type": "video", "video": frames, "fps": 2.0})
    tokens = len(processor.encode(prompt, decode=False))
    with pytest.raises(TooLong, match=f"^the prompt has {tokens} tokens"):
        processor.encode(prompt, tokens - 1)
    with pytest.raises(TooLong, match=r"^a frame of a video has \d+ patches, over the limit of 1 "):
        processor.encode(prompt, tokens, 1)
    with pytest.raises(MediaError, match="frame 1"):
        processor.encode(prompt, tokens)


def test_a_picture_must_have_the_size_of_its_header(rng, monkeypatch, tmp_path):
    file = tmp_path / "a.png"
    random_image(rng, 60, 61).save(file)
    processor = jaxr1.load_processor("tiny")
    monkeypatch.setattr(units, "probe_image", lambda source: (60, 90))
    with pytest.raises(MediaError, match=r"a\.png'.* to 60x60 pixels, but its header says 90x60"):
        processor.encode(asked(image(str(file))))


@dataclasses.dataclass(frozen=True)
class Counted(StoredMedia):
    """Stored bytes that count how often they are read."""

    data: bytes
    reads: list

    @property
    def name(self) -> str:
        return "column of row 7"

    def read(self) -> bytes:
        self.reads.append(1)
        return self.data


def test_stored_bytes_are_read_once(rng):
    """For the header and the pixels; messages call them as before."""
    processor = jaxr1.load_processor("tiny")
    source = Counted(png(random_image(rng)), [])
    processor.encode(asked(image(source)))
    assert len(source.reads) == 1
    with pytest.raises(MediaError, match="column of row 7: damaged or truncated"):
        processor.encode(asked(image(Counted(cut(rng, 60, 60), []))))
    for one in (source.data, "data:image/png;base64,AAAA", {"bytes": source.data}):
        found = at_hand(image(one))["image"]
        assert isinstance(found, AtHand) and found.name == describe(one)
