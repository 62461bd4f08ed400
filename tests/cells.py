"""Cells of a notebook, for tests of functions that have no file."""

import linecache
import types


def cell(source, name="notebook", **globals_):
    """The namespace of source run as a notebook does: no file, but lines that inspect can find."""
    filename = f"<ipython-input-{abs(hash((source, name)))}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = types.ModuleType("__main__")
    module.__dict__.update(globals_)
    exec(compile(source, filename, "exec"), module.__dict__)  # the test's own literal source
    return module.__dict__
