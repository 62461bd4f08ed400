"""`python -m jaxr1.convert --gguf FILE --out DIR`: the Hugging Face directory of a GGUF file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Convert:
    """Writes a complete Hugging Face directory from a GGUF file of the Llama or Qwen2 architecture.

    Attributes:
      gguf: the file.
      out: the directory to write; what stood there before is replaced.
      dtype: of the weights.
    """

    gguf: str
    out: str
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


def main(argv: list[str] | None = None) -> int:
    """The command."""
    from jaxr1.entry import arguments, finish, prepare

    prepare()
    args = arguments(Convert, "convert", argv)
    from jaxr1.checkpoints.gguf import convert_gguf

    def convert() -> int:
        print(convert_gguf(Path(args.gguf), Path(args.out), args.dtype))
        return 0

    return finish(convert)


if __name__ == "__main__":
    sys.exit(main())
