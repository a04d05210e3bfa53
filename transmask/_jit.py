"""Compile kernels with numba: lazily, without the interpreter lock, and cached on disk where that is possible.

A kernel is a serial function over blocks; threads are the caller's business. numba keeps the compiled code next to the
source, in the user's cache folder, or in NUMBA_CACHE_DIR. A kernel may call what another file defines, which numba
would not notice; so it is compiled anew when any module of its package (`transmask.solvers` with the folders in it,
`transmask.certificate`) changes, or any module beside it where that is no package of transmask.

With NUMBA_DISABLE_JIT=1 a kernel is the Python function itself.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ._signals import signals_later

with signals_later():
    import numba
    from numba.core.caching import FunctionCache
    from numba.core.registry import cpu_target

    config: Any = numba.config
    if not config.DISABLE_JIT:  # what numba imports at its first call otherwise, when an interrupt would break it
        cpu_target.typing_context.refresh()
        cpu_target.target_context.refresh()

__all__ = ["bare_kernel", "cache_folders", "inlined_kernel", "inner_kernel", "kernel", "source_stamp"]


class BestEffortCache(FunctionCache):
    """numba's cache on disk, whose failures cost time but not the answer.

    When a function is decorated numba checks that the folder can be written. When the compiled code is stored later, a
    full disk or a folder that is gone raises, and so does reading a file that was cut short. Neither is a reason to
    fail. Bytes that changed on the disk go unnoticed here.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = source_stamp(function)
        _CACHES.append(self)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled code for a signature, or None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # pickle raises almost anything on a damaged file
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store the compiled code for a signature, if that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception:
            self.disable()


_CACHES: list[BestEffortCache] = []


def cache_folders() -> list[str]:
    """List the folders in which the compiled code of the kernels that are loaded is kept."""
    return sorted({str(cache.cache_path) for cache in _CACHES if cache._enabled})


def source_stamp(function: Callable[..., Any]) -> str:
    """Return a digest of the text of all modules that a kernel may call; see the top of this file."""
    package = sys.modules.get(".".join(function.__module__.split(".")[:2]))
    if package is not None and package.__name__.startswith(f"{__package__}.") and hasattr(package, "__path__"):
        return _digest(Path(str(package.__file__)).parent, "**/*.py")
    return _digest(Path(function.__code__.co_filename).parent, "*.py")


@cache
def _digest(folder: Path, modules: str) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for module in sorted(folder.glob(modules)):
        digest.update(module.relative_to(folder).as_posix().encode() + module.read_bytes())
    return digest.hexdigest()


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called; a decorator.

    Division by zero gives inf or nan as in numpy instead of raising, so that loops can be vectorised.

    Parameters
    ----------
    function : callable
        Understood by numba's nopython mode.

    Returns
    -------
    callable
        A numba dispatcher, which releases the interpreter lock while it runs; other kernels may call it.
    """
    return _compiled(function)


def bare_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do what `kernel` does for a function that allocates no memory, and calls only such functions.

    References to arrays are not counted. Counting them took a sixth of the time of `primal_dual` at 8:16: each call
    counts its arguments with locked instructions.
    """
    return _compiled(function, _nrt=False)


def inner_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do what `bare_kernel` does for a function that Python never calls, which saves a tenth of the compilation."""
    return _compiled(function, _nrt=False, no_cpython_wrapper=True)


def inlined_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do what `inner_kernel` does without a call, which would push seven words on the stack for every array."""
    return _compiled(function, _nrt=False, no_cpython_wrapper=True, forceinline=True)


def _compiled(function: Callable[..., Any], **options: bool) -> Callable[..., Any]:
    compiler: Any = numba.njit  # some of these options are not in its annotations
    dispatcher = compiler(nogil=True, error_model="numpy", no_cfunc_wrapper=True, **options)(function)
    if not config.DISABLE_JIT and not config.BOUNDSCHECK:  # numba would load cached code that checks no bounds
        with suppress(RuntimeError, OSError):  # no folder can be written
            dispatcher._cache = BestEffortCache(function)  # what enable_caching() does
    compiled: Callable[..., Any] = dispatcher
    return compiled
