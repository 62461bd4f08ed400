"""User rewards for the tests of a run."""

import os


def spread(completion, example):
    """Differs between almost any two responses, so that advantages are not all zero."""
    return (sum(map(ord, completion.text)) % 17) / 17.0


def unrepeatable(completion, example):
    """Another number at each call: a resume may not ask twice."""
    return int.from_bytes(os.urandom(2), "little") / 65536
