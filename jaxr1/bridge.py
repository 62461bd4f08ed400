"""`python -m jaxr1.bridge --data.path ROWS --model DIR --reason-model DIR --out FILE`."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0 done, 1 a mistake in the input, 128 + signal if stopped."""
    from jaxr1.entry import arguments, finish, prepare

    prepare()
    from jaxr1.bridging.bridge import bridge
    from jaxr1.bridging.options import BridgeFiles

    args = arguments(BridgeFiles, "bridge", argv)
    return finish(lambda: bridge(args))


if __name__ == "__main__":
    sys.exit(main())
