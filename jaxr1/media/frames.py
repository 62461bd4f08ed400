"""Which frames of a clip are taken."""

import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from jaxr1.media.images import MediaError

Sampling: TypeAlias = Literal["stride", "ends"]
"""Where n of N frames lie.

"stride" (Qwen2-VL): at i * N / n, rounded down, so the end of the clip is never quite reached;
"ends" (Qwen3-VL): evenly from the first frame to the last, both taken.
"""


def check_rate(option: str, value: Any) -> None:
    """Raises ValueError where a rate is no positive number."""
    if value is None:
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and value > 0 and math.isfinite(value)):
        raise ValueError(
            f"{option} must be a positive number of frames a second, got {value!r:.80}"
        )


@dataclass(frozen=True)
class FrameChoice:
    """How many frames of a clip are taken, and where they lie: see `sample_indices`.

    Attributes:
      fps: frames to take for a second of the clip.
      num_frames: frames to take whatever its length; "stride" rounds it to a multiple of
        `frame_factor`.
      min_frames: least number of frames taken at `fps`.
      max_frames: largest number of frames taken, unless by `num_frames`.
      frame_factor: frames that become one temporal patch.
      sampling: see `Sampling`.

    Raises:
      ValueError: an option out of range, or both `fps` and `num_frames`.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    frame_factor: int = 2
    sampling: Sampling = "stride"

    def __post_init__(self) -> None:
        if self.sampling not in get_args(Sampling):
            raise ValueError(
                f"sampling must be one of {', '.join(get_args(Sampling))}, got {self.sampling!r}"
            )
        if self.fps is not None and self.num_frames is not None:
            raise ValueError(
                f"fps ({self.fps:g}) and num_frames ({self.num_frames}) exclude each other"
            )
        check_rate("fps", self.fps)
        for option in ("min_frames", "max_frames", "frame_factor", "num_frames"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}")

    @property
    def step(self) -> int:
        """What the number of frames taken is a multiple of."""
        return self.frame_factor if self.sampling == "stride" else 1


EVERY_FRAME = FrameChoice()
"""All frames of a clip, up to `max_frames`."""


def sample_indices(
    total: int, source_fps: float | None = None, choice: FrameChoice = EVERY_FRAME
) -> np.ndarray:
    """Which frames of a clip are taken, as the video processors of Qwen2-VL and Qwen3-VL choose.

    This is `sample_frames` of those processors in transformers. With `fps`, n = total / source_fps
    * fps frames, but no fewer than `min_frames` and no more than `max_frames` or than there are.
    "stride" rounds n down to a multiple of `frame_factor` ("ends" takes n as it is, and the last
    frame is repeated later); one multiple is taken at least, or the whole clip where it is shorter.
    With neither `fps` nor `num_frames` every frame is taken, or `max_frames` where there are more.
    In clips of more than 16,384 frames the reference for "stride", which counts in float32, may
    take the neighbour of a frame taken here.

        10 frames at 5 a second, fps=2:   0 1 2 3 4 5 6 7 8 9
        "stride"                          x   x     x   x         n = 4, at 0 2.5 5 7.5 rounded down
        "ends"                            x     x     x     x     n = 4, at 0 3 6 9

    Args:
      total: frames of the clip.
      source_fps: frames a second of the clip; needed with `fps` only.
      choice: how many frames, and where.

    Returns:
      int64[n], strictly ascending.

    Raises:
      MediaError: no frames; fewer than `num_frames`; `fps` without `source_fps`.
      ValueError: `source_fps` is no positive number.
    """
    check_rate("fps of the source", source_fps)
    if total < 1:
        raise MediaError("the video has no frames")
    if choice.num_frames is not None:
        count = _count_of_number(total, choice.num_frames, choice.step)
    elif choice.fps is not None:
        if source_fps is None:
            raise MediaError(
                f"taking {choice.fps:g} frames a second needs to know how many the source has: "
                "give fps beside the video"
            )
        count = _count_within(choice, total, total / source_fps * choice.fps, choice.min_frames)
    elif total > choice.max_frames:
        count = _count_within(choice, total, total, 1)
    else:
        count = total
    if choice.sampling == "ends":
        return np.linspace(0, total - 1, count).round().astype(np.int64)
    return np.arange(count, dtype=np.int64) * total // count


def _count_of_number(total: int, num_frames: int, step: int) -> int:
    # Python rounds halves to even, and so does the reference: 5 frames in pairs are 4, 7 are 8.
    count = max(round(num_frames / step), 1) * step
    if count > total:
        raise MediaError(f"{count} frames are wanted of a video of {total}")
    return count


def _count_within(choice: FrameChoice, total: int, wanted: float, least: int) -> int:
    """The number of frames nearest to the wanted one that the bounds and the step allow."""
    step = choice.step
    most = min(choice.max_frames, total) // step * step
    count = int(min(max(wanted, least), most)) // step * step
    return max(count, min(step, total))
