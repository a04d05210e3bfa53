"""Validate integers and real numbers: numpy's count as numbers, a bool does not."""

from __future__ import annotations

import operator
from numbers import Real

from ..errors import InvalidArgumentError, InvalidTypeError

__all__ = ["as_integer", "as_number"]


def as_integer(
    value: object, *, argument: str, least: int | None = None, expected: str = "an integer", remedy: str = ""
) -> int:
    """Return `value` as an int.

    Parameters
    ----------
    value : object
        An int, or anything else that can be an index, such as numpy's integers.
    argument : str
        What error messages call it.
    least : int, optional
        The smallest value allowed.
    expected : str, default "an integer"
        What error messages ask for.
    remedy : str, optional
        A sentence to end error messages with.

    Returns
    -------
    int

    Raises
    ------
    InvalidTypeError
        If it is not an integer; True and False are not.
    InvalidArgumentError
        If it is smaller than `least`.

    Examples
    --------
    >>> as_integer(4, argument="m", least=1)
    4
    """
    hint = f" {remedy}" if remedy else ""
    try:
        if isinstance(value, bool):
            raise TypeError
        integer = operator.index(value)  # type: ignore[arg-type]  # whether it has an __index__ is the question
    except TypeError:
        raise InvalidTypeError(f"`{argument}` must be {expected}, got {value!r}.{hint}") from None
    if least is not None and integer < least:
        raise InvalidArgumentError(f"`{argument}` must be at least {least}, got {integer}.{hint}")
    return integer


def as_number(value: object, *, argument: str) -> float:
    """Return `value` as a float.

    Raises
    ------
    InvalidTypeError
        If it is not a real number; True and False are not.
    InvalidArgumentError
        If it is too large for a float.

    Examples
    --------
    >>> as_number(1, argument="density")
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidTypeError(f"`{argument}` must be a number, got {value!r}.")
    try:
        return float(value)
    except OverflowError:
        raise InvalidArgumentError(f"`{argument}` must fit a float, got an integer of {value!r:.20}...") from None
