"""Files that are written whole or not at all, and files that are known again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """Where what can be made again is kept: $JAXR1_CACHE, or jaxr1 in the user's cache folder."""
    if os.environ.get("JAXR1_CACHE"):
        return Path(os.environ["JAXR1_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxr1"


def write_whole(file: Path, data: bytes) -> None:
    """Writes a file by atomic rename, on disk before this returns: nobody ever reads half of it."""
    # A name of this process: two that write the same file do not write into each other's.
    scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with open(scratch, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(scratch, file)


def fingerprint_of(file: Path) -> str:
    """Size and hash of a file: "1234 bytes, sha256 0123456789abcdef"."""
    with open(file, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return f"{file.stat().st_size} bytes, sha256 {digest[:16]}"
