"""User rewards for the tests of a run."""

import os
import zlib


def spread(completion, example):
    """Differs between almost any two responses, so that advantages are not all zero."""
    return (sum(map(ord, completion.text)) % 17) / 17.0


def by_row(completion, example):
    """Known pass rates: by the row's number always wrong, by chance (of the text), always right."""
    kind = int(example.source.rpartition(":")[2]) % 3
    return (0.0, float(zlib.crc32(completion.text.encode()) % 2), 1.0)[kind]


def sure(completion, example):
    """Always right."""
    return 1.0


def unrepeatable(completion, example):
    """Another number at each call: a resume may not ask twice."""
    return int.from_bytes(os.urandom(2), "little") / 65536
