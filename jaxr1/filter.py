"""`python -m jaxr1.filter --model DIR --data.path ROWS`: pass rates of rows, beside them."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0 done, 1 a mistake in the input, 128 + signal if stopped."""
    from jaxr1.entry import arguments, finish, prepare

    prepare()
    from jaxr1.run.rates import FilterRows, filter_rows

    args = arguments(FilterRows, "filter", argv)
    return finish(lambda: filter_rows(args))


if __name__ == "__main__":
    sys.exit(main())
