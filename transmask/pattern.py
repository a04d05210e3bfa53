"""The N:M pattern: the one place that knows what N and M mean.

**N is the number of entries kept out of every M**, as in Zhou et al. 2021 and in NVIDIA's 2:4. Other tools count the
pruned entries (SparseGPT, Wanda, Hubara et al. 2021) or write M first (apex); the converters here translate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from ._arguments import as_integer
from .errors import InvalidArgumentError, InvalidTypeError, unknown_choice

__all__ = ["Constraint", "Pattern", "PatternLike", "as_constraint"]

Constraint: TypeAlias = Literal["exactly", "at_most"]
"""Whether every line of a block keeps exactly N entries or at most N."""

CONSTRAINTS: tuple[Constraint, ...] = ("exactly", "at_most")


@dataclass(frozen=True, slots=True, order=True)
class Pattern:
    """Keep `n` of every `m` consecutive entries.

    Parameters
    ----------
    n : int
        Number of entries kept, 0 <= n <= m.
    m : int
        Group size and block side, m >= 1.

    Raises
    ------
    InvalidTypeError
        If `n` or `m` is not an integer.
    InvalidArgumentError
        If m < 1, n < 0 or n > m.

    References
    ----------
    Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", section 3.

    Examples
    --------
    >>> Pattern(2, 4).density
    0.5
    >>> str(Pattern.parse("1:4").complement)
    '3:4'
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        group_size = "It is the group size, 4 in '2:4'."
        object.__setattr__(self, "m", as_integer(self.m, argument="m", least=1, remedy=group_size))
        kept = "It counts the entries kept."
        object.__setattr__(self, "n", as_integer(self.n, argument="n", least=0, remedy=kept))
        if self.n > self.m:
            raise InvalidArgumentError(
                f"`n` must be at most m = {self.m}, got {self.n}. "
                f"N counts the entries kept of every M: did you mean '{self.m}:{self.n}'?"
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """Fraction of the entries kept, n / m."""
        return self.n / self.m

    @property
    def complement(self) -> Pattern:
        """The pattern of the pruned entries, (m - n):m."""
        return Pattern(self.m - self.n, self.m)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read "N:M", N entries kept of every M.

        Parameters
        ----------
        text : str
            Such as "2:4"; spaces around the numbers are allowed.

        Returns
        -------
        Pattern

        Raises
        ------
        InvalidTypeError
            If `text` is not a string.
        InvalidArgumentError
            If it is not two integers with a colon between them, or they do not make a pattern.

        Examples
        --------
        >>> Pattern.parse("8:16")
        Pattern(n=8, m=16)
        """
        if not isinstance(text, str):
            raise InvalidTypeError(f"`pattern` must be a string such as '2:4', got {text!r}.")
        return _parse(text)

    @classmethod
    def from_zeros(cls, n_zeros: int, m: int) -> Pattern:
        """Convert from the convention that counts pruned entries (SparseGPT, Wanda, Hubara et al. 2021).

        Parameters
        ----------
        n_zeros : int
            Number of entries pruned of every `m`.
        m : int
            Group size.

        Returns
        -------
        Pattern

        Raises
        ------
        InvalidTypeError
            If `n_zeros` or `m` is not an integer.
        InvalidArgumentError
            If they do not make a pattern.

        Examples
        --------
        >>> str(Pattern.from_zeros(3, 4))
        '1:4'
        """
        group = cls(0, m)
        zeros = as_integer(n_zeros, argument="n_zeros")
        if not 0 <= zeros <= group.m:
            raise InvalidArgumentError(f"`n_zeros` must lie in [0, m] = [0, {group.m}], got {zeros}.")
        return cls(group.m - zeros, group.m)

    @classmethod
    def from_apex(cls, text: str) -> Pattern:
        """Convert from apex's names, which write m first: "m4n2_1d", "m4n2_2d_best".

        Parameters
        ----------
        text : str
            The name of an apex mask function.

        Returns
        -------
        Pattern

        Raises
        ------
        InvalidArgumentError
            If `text` does not start with "m<digits>n<digits>".

        Examples
        --------
        >>> str(Pattern.from_apex("m4n2_2d_best"))
        '2:4'
        """
        found = re.match(r"m(\d{1,9})n(\d{1,9})(?:_|$)", str(text), re.ASCII)
        if found is None:
            raise InvalidArgumentError(f"`text` must be an apex pattern name such as 'm4n2_1d', got {text!r}.")
        return cls(int(found[2]), int(found[1]))

    @classmethod
    def of(cls, value: PatternLike) -> Pattern:
        """Accept a Pattern, a string "N:M" or a pair (n, m).

        Parameters
        ----------
        value : Pattern, str or tuple of two int

        Returns
        -------
        Pattern

        Raises
        ------
        InvalidTypeError
            If `value` is something else.
        InvalidArgumentError
            If it does not make a pattern.

        Examples
        --------
        >>> Pattern.of((2, 4)) == Pattern.of("2:4") == Pattern(2, 4)
        True
        """
        if isinstance(value, Pattern):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, tuple) and len(value) == 2:
            return cls(*value)
        raise InvalidTypeError(f"`pattern` must be a Pattern, a string such as '2:4' or a pair (n, m), got {value!r}.")


@lru_cache
def _parse(text: str) -> Pattern:
    """Read two integers with a colon between them."""
    found = re.fullmatch(r"\s*(-?\d{1,18})\s*:\s*(-?\d{1,18})\s*", text, re.ASCII)
    if found is None:
        raise InvalidArgumentError(
            f"`pattern` must read 'N:M', N entries kept of every M, got {text!r}. For example '2:4'."
        )
    return Pattern(int(found[1]), int(found[2]))


PatternLike: TypeAlias = Pattern | str | tuple[int, int]


def as_constraint(value: str) -> Constraint:
    """Return `value` if it is "exactly" or "at_most", else raise InvalidArgumentError with the closest one.

    Examples
    --------
    >>> as_constraint("at_most")
    'at_most'
    """
    if not isinstance(value, str) or value not in CONSTRAINTS:
        raise unknown_choice("constraint", value, CONSTRAINTS)
    return value
