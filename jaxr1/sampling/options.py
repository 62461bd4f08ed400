"""How responses are asked for."""

from __future__ import annotations

import dataclasses

from jaxr1.base.checks import check_least


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How responses are drawn.

    Attributes:
      max_new_tokens: limit of a response.
      temperature: 0 is greedy.
      top_p, top_k: filters of the draw; 1.0 and 0 keep everything. Reported log-probs are from
        before them.
      stop: strings that end a response; names of special tokens may be in them.
      stop_token_ids: ids that end it, besides the processor's.
      ignore_stops: never end before max_new_tokens (benchmarks).
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_stops: bool = False

    def __post_init__(self):
        check_least(self, "", max_new_tokens=1)
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not all(self.stop):
            raise ValueError("stop: an empty string would end every response at once")
