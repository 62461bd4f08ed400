"""The formats of rows that are read, in the order in which they are looked for."""

from collections.abc import Mapping
from typing import Any

from jaxr1.data.formats import (
    alpaca,
    easyr1,
    eureka,
    llama_factory,
    lmm_r1,
    openrlhf,
    own,
    r1_omni,
    sharegpt,
    swift,
    trl,
    verl,
    vlmevalkit,
)
from jaxr1.data.formats.base import Format
from jaxr1.data.stored import BadField

FORMATS: tuple[Format, ...] = (
    verl.FORMAT,
    lmm_r1.FORMAT,
    eureka.FORMAT,
    r1_omni.FORMAT,
    sharegpt.FORMAT,
    swift.FORMAT,
    alpaca.FORMAT,
    trl.FORMAT,
    own.FORMAT,
    easyr1.FORMAT,
    openrlhf.FORMAT,
    vlmevalkit.FORMAT,
    llama_factory.FORMAT,
)


def format_of(columns: Mapping[str, Any]) -> Format:
    """The format that a row with these columns has.

    Raises:
      BadField: none of those that are read; it says which columns there are, and what was looked
        for.
    """
    for known in FORMATS:
        if known.fits(columns):
            return known
    has = ", ".join(repr(name) for name, value in columns.items() if value is not None)
    looked = "; ".join(f"{known.name}: {_needed(known)}" for known in FORMATS if known.columns)
    raise BadField("prompt", f"missing; the row has {has or 'nothing'}. Looked for {looked}")


def _needed(known: Format) -> str:
    """The columns that a format is known by: 'chosen' and 'rejected', or 'prompt'."""
    return ", or ".join(" and ".join(map(repr, needed)) for needed in known.columns)
