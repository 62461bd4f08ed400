"""What 8-bit pixels stand for. Nothing here needs jax: data sets open pictures without it."""

import dataclasses

CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Levels:
    """What 8-bit pixels stand for: scale * level + shift, by channel."""

    scale: tuple[float, float, float]
    shift: tuple[float, float, float]
