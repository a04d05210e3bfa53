"""Keep the machine code of patterns on disk, next to the compiled kernels: best effort, with a checksum."""

# mypy: allow-untyped-calls

from __future__ import annotations

import hashlib
import pickle
from contextlib import suppress
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile

from ...._jit import source_stamp

__all__ = ["load_code", "save_code"]


def load_code(name: str, machine: tuple[str, ...]) -> Any:
    """Return what `save_code` stored for a machine, or None if nothing was stored or it is damaged."""
    try:
        whose, digest, payload = _code_file(name).load(machine)
        if whose == (name, machine, source_stamp(load_code)) and digest == hashlib.sha256(payload).hexdigest():
            return pickle.loads(payload)
    except Exception:  # pickle raises almost anything on a damaged file
        pass
    return None


def save_code(name: str, machine: tuple[str, ...], code: Any) -> None:
    """Store machine code, if that is possible.

    The file names its owner once more, because processes that store at once may write each other's file.
    """
    payload = pickle.dumps(code)
    with suppress(Exception):
        whose = name, machine, source_stamp(load_code)
        _code_file(name).save(machine, (whose, hashlib.sha256(payload).hexdigest(), payload))


def _code_file(name: str) -> Any:
    """Return the file of some machine code, where numba would keep that of a kernel of this file."""
    locator = FunctionCache(_code_file)._impl.locator
    locator.ensure_cache_path()
    return IndexDataCacheFile(locator.get_cache_path(), name, source_stamp(load_code))
