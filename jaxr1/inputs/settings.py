"""What a processor can be told."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxr1.base.checks import check_types


@dataclasses.dataclass(frozen=True)
class ProcessorOptions:
    """What the processor does other than the model directory says; None leaves it.

    Attributes:
      min_pixels: lower bound of the area of a resized image.
      max_pixels: upper bound of the area of a resized image.
      template: "r1_zero" for base models; "chatml" or "internvl2_5" for directories without a chat
        template of their own.
      video_fps: frames taken for a second of video.
      video_max_frames: most frames taken of a video.
      video_max_pixels: upper bound of the area of a resized frame (of all frames together for
        Qwen3-VL).
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    template: Literal["r1_zero", "chatml", "internvl2_5"] | None = None
    video_fps: float | None = None
    video_max_frames: int | None = None
    video_max_pixels: int | None = None

    def __post_init__(self):
        check_types(self)
