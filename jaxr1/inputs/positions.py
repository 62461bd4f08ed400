"""Positions of a prompt with media: time, row and column (M-RoPE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Span:
    """A run of media tokens: its place, its grid (t, h, w) in tokens, its steps in time."""

    start: int
    end: int
    grid: tuple[int, int, int]
    step: float = 1.0


def mrope_positions(length: int, spans: Sequence[Span]) -> tuple[np.ndarray, int]:
    """M-RoPE positions (arXiv:2409.12191 §2.1): text counts on, media in t, h and w.

        tokens    x x v v v v v v x x          an image of 2 x 3 tokens
        time      0 1 2 2 2 2 2 2 5 6
        row       0 1 2 2 2 3 3 3 5 6
        column    0 1 2 3 4 2 3 4 5 6          the text goes on after the largest position so far

    Frames of a video are `step` apart in time (Qwen2.5-VL: seconds x tokens_per_second, rounded
    down), so that a long one counts further than its rows and columns do. The text behind it begins
    after its time, as in the authors' code, with which the checkpoints were trained; transformers
    since 5.3 begins after rows and columns alone, in the middle of the video.

    Returns:
      int32[length, 3] and the position of the next token.
    """
    position = np.zeros((length, 3), np.int32)
    at = current = 0
    for span in spans:
        position[at : span.start] = current + np.arange(span.start - at)[:, None]
        current += span.start - at
        t, rows, columns = span.grid
        time = (np.arange(t, dtype=np.float32) * np.float32(span.step)).astype(np.int32)
        place = np.stack(np.meshgrid(time, np.arange(rows), np.arange(columns), indexing="ij"), -1)
        position[span.start : span.end] = current + place.reshape(-1, 3)
        current += 1 + int(place.max())
        at = span.end
    position[at:] = current + np.arange(length - at)[:, None]
    return position, int(position.max(initial=-1)) + 1


def numbered_media(length: int, spans: Sequence[Span]) -> np.ndarray:
    """int32[length]: the running number of each media token, -1 for all others."""
    media_index = np.full(length, -1, np.int32)
    seen = 0
    for span in spans:
        size = span.end - span.start
        media_index[span.start : span.end] = np.arange(seen, seen + size)
        seen += size
    return media_index
