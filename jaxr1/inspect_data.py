"""`python -m jaxr1.inspect_data CONFIG.py[:VARIANT] [--against ROWS ...]`: looks at the data."""

from __future__ import annotations

import sys
from pathlib import Path

USAGE = """usage: python -m jaxr1.inspect_data CONFIG.py[:VARIANT] [--against ROWS ...] [--out DIR]
                                    [--ngram N] [--strict] [--FIELD VALUE ...]

  python -m jaxr1.inspect_data configs/quickstart.py
  python -m jaxr1.inspect_data my.py --against mathvista.tsv --against "test/*.parquet"

Counts, lengths, sizes, languages, answers, what is left out and why, what each reward says to the
reference answers, and what is twice: on the console, in DIR/inspect.html and DIR/inspect.json (DIR
is RUN_DIR/inspect). Rows of stages that a held-out set or a file of --against holds too are in
DIR/overlaps.jsonl; with --strict there may be none: the exit status is then 1."""


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0 done, 1 a mistake in the input, or rows in two sets."""
    from jaxr1.entry import finish, prepare

    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    prepare()
    return finish(lambda: _inspect(argv))


def _inspect(argv: list[str]) -> int:
    import dataclasses

    from jaxr1.config import load_config, parse
    from jaxr1.inspection.inspect import inspect
    from jaxr1.models import load

    own, flags = _split(argv[1:])
    config = parse(load_config(argv[0]), flags, f"python -m jaxr1.inspect_data {argv[0]}")
    parts = {f"stages.{i}": stage for i, stage in enumerate(config.stages)}
    sets = {f"evaluations.{i}": one for i, one in enumerate(config.evaluations)}
    processor = load.load_processor(config.model, **dataclasses.asdict(config.processor))
    out = Path(own["--out"][-1]) if own["--out"] else Path(config.run_dir) / "inspect"
    ngram = int(own["--ngram"][-1]) if own["--ngram"] else 13
    same = inspect({**parts, **sets}, processor, out, own["--against"], ngram)
    return 1 if same and "--strict" in argv else 0


def _split(argv: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """(values of this command's own flags, flags of the configuration)."""
    own: dict[str, list[str]] = {"--against": [], "--out": [], "--ngram": []}
    rest = []
    words = iter(argv)
    for word in words:
        if word in own:
            value = next(words, None)
            if value is None or (word == "--ngram" and not value.isdecimal()):
                from jaxr1.config import ConfigError

                what = "a whole number" if word == "--ngram" else "a name"
                raise ConfigError(f"{word} needs {what}")
            own[word].append(value)
        elif word != "--strict":
            rest.append(word)
    return own, rest


if __name__ == "__main__":
    sys.exit(main())
