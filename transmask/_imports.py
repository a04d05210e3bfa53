"""Import heavy modules whole: Ctrl-C, or any other signal that raises, waits until the import has ended.

An exception in the middle of ``import numba`` leaves some of its modules imported and not bound to the package, and
Python goes on with these: every later call in the same process, as in a notebook, fails with "module 'numba' has no
attribute 'core'".
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import resolve_name
from types import ModuleType

from ._signals import signals_later

__all__ = ["import_whole"]


def import_whole(name: str, package: str | None = None) -> ModuleType:
    """Do what `importlib.import_module` does, and let no signal break it off.

    Parameters
    ----------
    name : str
        A relative name needs `package`.
    package : str, optional

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If the module cannot be imported.
    KeyboardInterrupt
        Or whatever else the handler of a signal raises that arrived meanwhile, once the module is imported.

    Examples
    --------
    >>> import_whole("math").pi
    3.141592653589793
    """
    if resolve_name(name, package) in sys.modules:
        return import_module(name, package)
    with signals_later():
        return import_module(name, package)
