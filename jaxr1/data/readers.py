"""Reading one's own data: JSON lines, JSON and parquet files of prompts, images and answers; and
SAT.
"""

import ast
import base64
import binascii
import glob
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxr1.data.choices import shuffle_options, with_options
from jaxr1.data.example import DataError, Dataset, Example
from jaxr1.media.images import MediaError, decode_data_uri, load_image, probe_image
from jaxr1.media.videos import probe_video

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
ROLES = ("system", "user", "assistant", "tool")
MAX_PRINTED_BYTES = 1 << 28
"""Characters of a printed byte string that are still parsed: 64 MiB of image at up to four
characters a byte.
"""

_OWN_COLUMNS = ("messages", "prompt", "images", "image", "videos", "video", "answer", "response")
_PRINTED_BYTES = re.compile(r"""b'(?:[^'\\]|\\.)*'|b"(?:[^"\\]|\\.)*\"""", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*", re.ASCII)
_ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
# The first base64 characters of JPEG, PNG, GIF, RIFF (WebP), BMP and TIFF files.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")


@dataclass(frozen=True)
class Files:
    """Rows of one's own, from `.jsonl`, `.json` (a list of objects) or `.parquet`.

    Columns of a row:
      prompt or messages: a string, or chat turns ({"role", "content"}; content is a string or
      parts). In a string of a
        system or user turn `<image>` marks the places of the images. A part of a list is {"type":
        "text", "text"} or {"type": "image"}, which names its image ("image", "path" or "url") or
        takes the next one of `images`; in the text of a part `<image>` stays text.
      images or image: one or more of path (relative to `image_root`), bytes, base64, `data:` URI,
        {"bytes", "path"}, or the printed form of a byte string. Paths are kept, and opened when the
        picture is needed.
      videos or video: the same for videos, whose places `<video>` marks (only in rows that have
      this column); a part
        {"type": "video"} names its file ("video" or "path") or takes the next one.
      answer: text or a number. Where it is missing it is the final assistant turn, or its answer
        block where that holds exactly one.
      response: a worked response; a final assistant turn of the messages counts as one.
      Any other column goes to `metadata` (values that hold bytes are left out).

    Attributes:
      path: a file, or a pattern such as "data/part-*.parquet" (read in alphabetical order).
      image_root: folder that relative image paths start from; None is the folder of the file.
      bad_rows: "error" refuses the data set at the first load; "drop" leaves bad rows out and lists
        them in `Dataset.dropped` (in a run, in dropped.jsonl; there also those whose media prove
        damaged only when they are used).
      limit: keep only the first so many good rows.
      require_answer: whether a row without an answer is a bad row.
      check_images: "header" opens every image and video without decoding it, "decode" decodes it
        too (finds truncated files, takes longer), "no" leaves all to the moment of use.
    """

    path: str
    image_root: str | None = None
    bad_rows: Literal["error", "drop"] = "error"
    limit: int | None = None
    require_answer: bool = True
    check_images: Literal["header", "decode", "no"] = "header"

    def load(self) -> Dataset:
        """Reads and checks every row.

        Raises:
          DataError: a file cannot be read, there is no usable row, or (with bad_rows="error") a row
            is bad. Rows are counted from 1 and, in JSON lines, are the lines of the file.
        """
        _check_choice("bad_rows", self.bad_rows, ("error", "drop"))
        _check_choice("check_images", self.check_images, ("header", "decode", "no"))

        def example(row: Mapping[str, Any], source: str, root: Path) -> Example:
            return _example(row, source, root, self.require_answer, self.check_images)

        return _load(self.path, self.image_root, self.bad_rows, self.limit, example)


@dataclass(frozen=True)
class Sat:
    """SAT, the spatial aptitude data set (arXiv:2412.07755), in either of the forms it goes around
    in.

    Parquet (array/SAT): `image_bytes` (one or two images), `question`, `answers`, `question_type`,
    `correct_answer`. The options are shuffled by a hash of `seed` and the row, so a row always
    looks the same, and are listed with letters after the question; the answer is the letter, and
    the metadata hold `choices`, `answer_text` and `question_type`. JSON (VisualThinker-R1-Zero,
    arXiv:2503.05132): rows of `messages` and `images` where the question already lists its options
    and images may be printed byte strings; the answer is the assistant's text, never a letter.

    Attributes:
      path: file or pattern, as in `Files`.
      image_root: as in `Files`.
      seed: of the order of options.
      single_image_only: leave out rows with more than one image; they are listed in
        `Dataset.dropped`.
      limit: keep only the first so many rows. VisualThinker-R1-Zero trains on the first 15000 of
        the static part.
      bad_rows: as in `Files`.
      check_images: as in `Files`.
    """

    path: str
    image_root: str | None = None
    seed: int = 0
    single_image_only: bool = True
    limit: int | None = None
    bad_rows: Literal["error", "drop"] = "error"
    check_images: Literal["header", "decode", "no"] = "header"

    def load(self) -> Dataset:
        """As `Files.load`."""
        _check_choice("bad_rows", self.bad_rows, ("error", "drop"))
        _check_choice("check_images", self.check_images, ("header", "decode", "no"))

        def example(row: Mapping[str, Any], source: str, root: Path) -> Example:
            if "image_bytes" in row:
                count = len(_as_list(row["image_bytes"]))
            else:
                count = len(_as_list(row.get("images") or row.get("image")))
            if self.single_image_only and count != 1:
                raise _LeftOut(f"{count} images; single_image_only keeps rows with one")
            if "image_bytes" in row:
                row = self._asked(row)
            return _example(row, source, root, True, self.check_images)

        return _load(self.path, self.image_root, self.bad_rows, self.limit, example)

    def _asked(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A parquet row of SAT as a row of `Files`."""
        for name in ("question", "answers", "correct_answer"):
            if row.get(name) is None:
                raise _BadField(name, "missing")
        question, correct = str(row["question"]), str(row["correct_answer"])
        options = [str(option) for option in row["answers"]]
        # Hashed, not counted: dropping or adding rows must not reshuffle the others.
        digest = hashlib.sha256(json.dumps([self.seed, question, options, correct]).encode())
        for image in _as_list(row["image_bytes"]):
            data = image.get("bytes") if isinstance(image, Mapping) else image
            digest.update(data if isinstance(data, bytes) else str(data).encode())
        rng = np.random.default_rng(int.from_bytes(digest.digest()[:8], "little"))
        try:
            choices, letter = shuffle_options(options, correct, rng)
        except ValueError as error:
            raise _BadField("correct_answer", str(error)) from error
        images = _as_list(row["image_bytes"])
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        parts.append({"type": "text", "text": with_options(question, choices)})
        used = (
            "image_bytes",
            "question",
            "answers",
            "correct_answer",
            "answer",
            "response",
            "messages",
            "image",
        )
        other = {name: value for name, value in row.items() if name not in used}
        return {
            **other,
            "prompt": [{"role": "user", "content": parts}],
            "images": images,
            "answer": letter,
            "choices": choices,
            "answer_text": correct,
        }


class _BadField(ValueError):
    """What is wrong with one field of a row."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"field {name!r}: {reason}")


class _LeftOut(Exception):
    """A good row that the options leave out."""


def _load(
    path: str,
    image_root: str | None,
    bad_rows: str,
    limit: int | None,
    example: Callable[[Mapping[str, Any], str, Path], Example],
) -> Dataset:
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")
    kept: list[Example] = []
    dropped: list[dict[str, str]] = []
    first_bad: str | None = None
    bad = seen = 0
    for file in _files(path):
        root = Path(image_root) if image_root is not None else Path(file).parent
        for number, row in _rows(file):
            seen += 1
            source = f"{file}:{number}"
            try:
                if isinstance(row, _BadField | DataError):
                    raise row
                if not isinstance(row, Mapping):
                    raise DataError(
                        f"a row must be an object with columns, got {type(row).__name__}"
                    )
                kept.append(example(row, source, root))
            except _LeftOut as reason:
                dropped.append({"source": source, "reason": str(reason)})
            except (_BadField, DataError) as error:
                bad += 1
                first_bad = first_bad or f"{source}: {error}"
                dropped.append({"source": source, "reason": str(error)})
            if limit is not None and len(kept) >= limit:
                break
        if limit is not None and len(kept) >= limit:
            break
    if bad and bad_rows == "error":
        more = f"; {bad - 1} more bad row{'s' if bad > 2 else ''}" if bad > 1 else ""
        raise DataError(f'{first_bad}{more} (bad_rows="drop" leaves bad rows out)')
    if not kept:
        why = f"; the first: {dropped[0]['source']}: {dropped[0]['reason']}" if dropped else ""
        raise DataError(f"{path}: no usable row among {seen}{why}")
    advice = 'check_images="decode" finds such rows when the data is loaded, bad_rows="drop" leaves them out'
    return Dataset(
        Path(path).stem, len(kept), kept.__getitem__, dropped,
        videos=any(e.videos for e in kept), drop_bad=bad_rows == "drop", advice=advice,
    )  # fmt: skip


def _files(path: str) -> list[str]:
    text = os.fspath(path)
    if os.path.isfile(text):
        return [text]
    if os.path.isdir(text):
        raise DataError(
            f'{text}: a folder; name a file, or a pattern such as "{os.path.join(text, "*.parquet")}"'
        )
    files = sorted(glob.glob(text)) if any(sign in text for sign in "*?[") else []
    if not files:
        raise DataError(f"{text}: no such file")
    return files


def _rows(file: str) -> Iterator[tuple[int, Any]]:
    """Numbers from 1 and parsed rows of a file; a row that cannot be parsed comes as the error that
    says so.
    """
    suffix = Path(file).suffix.lower()
    try:
        if suffix in (".jsonl", ".ndjson"):
            yield from _rows_of_lines(file)
        elif suffix == ".json":
            yield from enumerate(_rows_of_json(file), 1)
        elif suffix in (".parquet", ".pq"):
            yield from enumerate(_rows_of_parquet(file), 1)
        else:
            raise DataError(
                f"{file}: unknown kind of file {suffix!r}; known are .jsonl, .json and .parquet"
            )
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _rows_of_lines(file: str) -> Iterator[tuple[int, Any]]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield number, DataError(f"not JSON: {error}")


def _rows_of_json(file: str) -> list[Any]:
    try:
        rows = json.loads(Path(file).read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        hint = "; is it JSON lines? then name it .jsonl" if "Extra data" in str(error) else ""
        raise DataError(f"{file}: not JSON: {error}{hint}") from error
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of objects, got {type(rows).__name__}")
    return rows


def _rows_of_parquet(file: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # slow to import, and most runs read no parquet
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            # Small batches: rows carry images, and `limit` may need only the first few.
            for batch in table.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{file}: not a readable parquet file ({error})") from error


def _example(
    row: Mapping[str, Any], source: str, root: Path, require_answer: bool, check_images: str
) -> Example:
    name = next((name for name in ("messages", "prompt") if row.get(name) is not None), None)
    if name is None:
        raise _BadField(
            "prompt",
            f"missing, and so is 'messages'; the row has {', '.join(map(repr, row)) or 'nothing'}",
        )
    turns = row[name]
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    media = {kind: _Media(row, kind, root, check_images) for kind in ("image", "video")}
    messages = _messages(turns, name, media)
    for column in media.values():
        column.finish(name)

    response = row.get("response")
    if response is not None and not isinstance(response, str):
        raise _BadField("response", f"must be text, got {type(response).__name__}")
    if messages[-1]["role"] == "assistant":
        final = messages.pop()["content"]
        if not isinstance(final, str):
            final = "".join(part.get("text", "") for part in final)
        response = final if response is None else response
    if not any(message["role"] == "user" for message in messages):
        raise _BadField(name, "no user turn before the final one")

    answer = _answer(row.get("answer"))
    if answer is None and response is not None:
        blocks = _ANSWER_BLOCK.findall(response)
        answer = (blocks[0] if len(blocks) == 1 else response).strip()
    if require_answer and not answer:
        raise _BadField("answer", "missing, and there is no response to take it from")
    metadata = {
        key: _plain(value)
        for key, value in row.items()
        if key not in _OWN_COLUMNS and not _has_bytes(value)
    }
    return Example(tuple(messages), answer, response, source, metadata)


def _messages(turns: Any, name: str, media: "dict[str, _Media]") -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not turns:
        raise _BadField(name, f"expected text or a list of turns, got {turns!r:.80}")
    messages = []
    for index, turn in enumerate(turns):
        where = f"{name}[{index}]"
        if not isinstance(turn, Mapping) or turn.get("content") is None:
            raise _BadField(where, "expected an object with 'role' and 'content'")
        role, content = turn.get("role"), turn["content"]
        if role not in ROLES:
            raise _BadField(f"{where}.role", f"expected one of {', '.join(ROLES)}, got {role!r}")
        if isinstance(content, str):
            parts: Any = content if role == "assistant" else _marked_parts(content, media)
        elif isinstance(content, list):
            parts = [_part(part, f"{where}.content[{i}]", media) for i, part in enumerate(content)]
        else:
            raise _BadField(
                f"{where}.content",
                f"expected text or a list of parts, got {type(content).__name__}",
            )
        messages.append({"role": role, "content": parts})
    return messages


def _marked_parts(text: str, media: "dict[str, _Media]") -> Any:
    """The text cut at its marks; the text itself where it has none."""
    marks = {IMAGE_MARK: media["image"]} | (
        {VIDEO_MARK: media["video"]} if media["video"].values else {}
    )
    pieces = re.split("(" + "|".join(marks) + ")", text)
    if len(pieces) == 1:
        return text
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        if piece in marks:
            parts.append({"type": marks[piece].kind, marks[piece].kind: marks[piece].next()})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _part(part: Any, where: str, media: "dict[str, _Media]") -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise _BadField(f"{where}.text", "missing")
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "image_url", "video"):
        medium = "video" if kind == "video" else "image"
        names = ("video", "path") if kind == "video" else ("image", "path", "url", "image_url")
        value = next((part[key] for key in names if part.get(key) is not None), None)
        if kind == "image_url" and isinstance(value, Mapping):
            value = value.get("url")
        column = media[medium]
        return {
            "type": medium,
            medium: column.next() if value is None else column.resolve(value, where),
        }
    raise _BadField(where, f"expected a part of type 'text', 'image' or 'video', got {kind!r}")


class _Media:
    """The images (or videos) column of a row, handed out place by place; counts what is asked for
    beyond its end.
    """

    def __init__(self, row: Mapping[str, Any], kind: str, root: Path, check: str) -> None:
        self.kind, self.root, self.check = kind, root, check
        self.field = f"{kind}s" if row.get(f"{kind}s") is not None else kind
        self.values = _as_list(row.get(self.field))
        self.places = 0

    def next(self) -> Any:
        self.places += 1
        if self.places > len(self.values):
            return None  # `finish` reports the mismatch with both counts
        index = self.places - 1
        return self.resolve(self.values[index], f"{self.field}[{index}]")

    def finish(self, name: str) -> None:
        if self.places != len(self.values):
            relation = "more" if self.places > len(self.values) else "fewer"
            raise _BadField(
                name,
                f"{relation} <{self.kind}> placeholders than {self.kind}s: "
                f"{self.places} in {name!r}, {len(self.values)} in {self.field!r}",
            )

    def resolve(self, value: Any, where: str) -> Any:
        """The reference that an example keeps: a path or bytes. Checks that there is an image (or
        video) behind it.
        """
        try:
            reference = _reference(value, self.root)
            if self.kind == "video":
                if self.check != "no":
                    probe_video(reference)
            elif self.check == "decode":
                load_image(reference)
            elif self.check == "header":
                probe_image(reference)
        except MediaError as error:
            raise _BadField(where, str(error)) from error
        return reference


def _reference(value: Any, root: Path) -> str | bytes:
    """What an images column may hold, as a path or as encoded bytes."""
    if isinstance(value, Mapping):  # the image struct of parquet files
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        value = value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise MediaError(
            f"expected a path, bytes, base64 or a data URI, got {type(value).__name__}"
        )
    if not value.strip():
        raise MediaError("the path is empty")
    if value.startswith("data:"):
        return decode_data_uri(value)
    if value.startswith(("http://", "https://")):
        raise MediaError(
            f"{value[:200]!r}: images are not downloaded; fetch the file and name its path"
        )
    if value.startswith(("b'", 'b"')) and len(value) > 3 and value[-1] == value[1]:
        return parse_printed_bytes(value)
    if len(value) >= 64 and value.startswith(_BASE64_STARTS) and _BASE64.fullmatch(value):
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            pass  # then it is a path
    if len(value) > 4096:
        raise MediaError(
            f"{value[:40]!r}... ({len(value)} characters): neither a path nor base64 of a known image format"
        )
    return os.fspath(root / value.removeprefix("file://"))


def parse_printed_bytes(text: str) -> bytes:
    r"""The bytes that Python printed as text: `"b'\\xff\\xd8...'"` gives `b'\xff\xd8...'`.

    Only a single bytes literal is accepted (checked before parsing), and nothing is evaluated.

    Raises:
      MediaError: anything else, or more than `MAX_PRINTED_BYTES` characters.
    """
    if len(text) > MAX_PRINTED_BYTES:
        raise MediaError(
            f"printed byte string of {len(text)} characters: more than {MAX_PRINTED_BYTES} are not parsed"
        )
    if _PRINTED_BYTES.fullmatch(text) is None:
        raise MediaError(f"{text[:40]!r}...: not a printed byte string")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise MediaError(f"{text[:40]!r}...: not a printed byte string ({error})") from error
    if not isinstance(value, bytes):
        raise MediaError(f"{text[:40]!r}...: not a printed byte string")
    return value


def _answer(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float) and (
        not isinstance(value, float) or math.isfinite(value)
    ):
        return str(value)
    raise _BadField("answer", f"expected text or a number, got {value!r:.80}")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _has_bytes(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_has_bytes(item) for item in value)
    return isinstance(value, bytes)


def _plain(value: Any) -> Any:
    """Values of parquet columns as what JSON can hold, so that rewards and rollout files can take
    them.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise DataError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
