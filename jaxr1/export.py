"""`python -m jaxr1.export --run-dir RUN --out DIR`: a checkpoint as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import signal
import sys
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a complete Hugging Face directory from a checkpoint of a run.

    Attributes:
      run_dir: the run.
      out: the directory to write: new, empty, or an earlier model, which is replaced.
      dtype: of the weights; None is the dtype of the model that the run started from.
      step: of the checkpoint, counted over all stages; None is the latest.
    """

    run_dir: str
    out: str
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    step: int | None = None


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0 done, 1 a mistake in the input, 130 stopped at once."""
    from jaxr1.entry import arguments, finish, prepare

    prepare()
    args = arguments(Export, "export", argv)
    from jaxr1.run.export import export_checkpoint
    from jaxr1.run.signals import Signals

    def notice(name: str) -> None:
        print(f"{name}: the export is finished first; once more stops at once", file=sys.stderr)

    def export() -> int:
        try:
            with Signals(notice):
                print(export_checkpoint(args.run_dir, args.out, args.dtype, args.step))
        except KeyboardInterrupt:
            print(f"stopped at once; {args.out} is as it was", file=sys.stderr)
            return 128 + signal.SIGINT
        return 0

    return finish(export)


if __name__ == "__main__":
    sys.exit(main())
