"""`python -m jaxr1.train CONFIG.py[:VARIANT] [--FIELD VALUE ...] [--override-resume]`: trains."""

from __future__ import annotations

import signal
import sys

USAGE = """usage: python -m jaxr1.train CONFIG.py[:VARIANT] [--FIELD VALUE ...] [--override-resume]

  python -m jaxr1.train configs/quickstart.py
  python -m jaxr1.train configs/quickstart.py --seed 1 --run-dir runs/second
  python -m jaxr1.train configs/visualthinker_r1_zero.py:tiny --stages.0.steps 20
  python -m jaxr1.train configs/quickstart.py --help          every field of this configuration

The same command resumes a run that was stopped; --override-resume accepts a changed
configuration, and changed files of data, rewards or model. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1
save and stop; a second one stops at once."""


OVERRIDE = "--override-resume"


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0 done, 1 a mistake in the input, 128 + signal if stopped."""
    from jaxr1.entry import finish, prepare

    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    prepare()
    from jaxr1.config import load_config, parse
    from jaxr1.run.loop import train

    def run() -> int:
        flags = [flag for flag in argv[1:] if flag != OVERRIDE]
        config = parse(load_config(argv[0]), flags, f"python -m jaxr1.train {argv[0]}")
        try:
            result = train(config, override_resume=OVERRIDE in argv)
        except KeyboardInterrupt:
            print(
                "stopped at once; the same command resumes from the last checkpoint, or begins "
                "again without one",
                file=sys.stderr,
            )
            return 128 + signal.SIGINT
        return 128 + result.signal if result.signal else 0

    return finish(run)


if __name__ == "__main__":
    sys.exit(main())
