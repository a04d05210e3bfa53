"""The number of masks of a structure, kept as a product of powers: written out it has millions of digits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["MAX_DIGITS", "Binomial", "Estimate", "Factor", "Integer", "MaskCount"]

MAX_DIGITS = 10**6
"""A count with fewer decimal digits than this is given as an integer."""

_SMALL = 4096  # up to here math.comb takes microseconds and its logarithm is exact to the last bit


class Factor(Protocol):
    """In how many ways one independent choice can be made."""

    @property
    def log2(self) -> float:
        """Its logarithm."""

    @property
    def log2_error(self) -> float:
        """By how much `log2` may be wrong; 0 for an exact number."""

    def value(self) -> int | None:
        """Return the integer; None if it is not known exactly."""


@dataclass(frozen=True, slots=True)
class Integer:
    """A number of at least 1 that is known exactly.

    Examples
    --------
    >>> Integer(90).log2
    6.491853096329675
    """

    number: int
    log2_error: float = 0.0

    @property
    def log2(self) -> float:
        """Its logarithm."""
        return math.log2(self.number)

    def value(self) -> int:
        """Return the number."""
        return self.number


@dataclass(frozen=True, slots=True)
class Binomial:
    """The ways to choose `k` of `n`, written out only when asked for.

    Examples
    --------
    >>> Binomial(64, 32).value()
    1832624140942590534
    """

    n: int
    k: int
    log2_error: float = 0.0

    @property
    def log2(self) -> float:
        """Its logarithm, to about 1e-7 for n = 10^8."""
        if self.n <= _SMALL:
            return math.log2(math.comb(self.n, self.k))
        logarithm = math.lgamma(self.n + 1) - math.lgamma(self.k + 1) - math.lgamma(self.n - self.k + 1)
        return logarithm / math.log(2)

    def value(self) -> int:
        """Multiply its prime powers: math.comb(10**6, 5 * 10**5) takes seconds, this a fraction of one."""
        if self.n <= _SMALL:
            return math.comb(self.n, self.k)
        sieve = np.ones(self.n + 1, np.bool_)
        sieve[:2] = False
        for divisor in range(2, math.isqrt(self.n) + 1):
            if sieve[divisor]:
                sieve[divisor * divisor :: divisor] = False
        primes = np.flatnonzero(sieve)
        exponents = np.zeros_like(primes)
        power = primes.copy()
        while (power <= self.n).any():  # Legendre: a prime divides n! floor(n/p) + floor(n/p^2) + ... times
            exponents += self.n // power - self.k // power - (self.n - self.k) // power
            power = np.where(power <= self.n, power * primes, power)
        powers = [int(prime) ** int(exponent) for prime, exponent in zip(primes, exponents, strict=True) if exponent]
        while len(powers) > 1:
            powers = [math.prod(powers[index : index + 2]) for index in range(0, len(powers), 2)]
        return math.prod(powers)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number known by an approximate logarithm and its measured error."""

    log2: float
    log2_error: float

    def value(self) -> None:
        """Return None: the integer is not known."""


@dataclass(frozen=True, slots=True)
class MaskCount:
    """A number of masks, as a product of powers.

    Attributes
    ----------
    powers : tuple of (Factor, int)
        Bases and exponents.

    Examples
    --------
    >>> count = MaskCount(((Integer(90), 4),))
    >>> count.value, count * count == MaskCount(((Integer(90), 8),))
    (65610000, True)
    """

    powers: tuple[tuple[Factor, int], ...]

    @property
    def log2(self) -> float:
        """Logarithm of the number."""
        return math.fsum(times * factor.log2 for factor, times in self.powers)

    @property
    def log2_error(self) -> float:
        """By how much `log2` may be wrong for want of an exact formula; 0 for an exact count."""
        return math.fsum(times * factor.log2_error for factor, times in self.powers)

    @property
    def value(self) -> int | None:
        """The integer, if it is known and has fewer than 10^6 digits; computed when asked for."""
        if self.log2_error or self.log2 >= (MAX_DIGITS - 1) * math.log2(10):
            return None
        product = 1
        for factor, times in self.powers:
            number = factor.value()
            if number is None:
                return None
            product *= number**times
        return product

    def __mul__(self, other: MaskCount) -> MaskCount:
        return MaskCount.of((*self.powers, *other.powers))

    @classmethod
    def of(cls, powers: Iterable[tuple[Factor, int]]) -> MaskCount:
        """Make a product, with equal bases merged and exponents of 0 left out.

        Parameters
        ----------
        powers : iterable of (Factor, int)
            Exponents of at least 0.

        Returns
        -------
        MaskCount
        """
        merged: dict[Factor, int] = {}
        for factor, times in powers:
            if times:
                merged[factor] = merged.get(factor, 0) + times
        return cls(tuple(merged.items()))
