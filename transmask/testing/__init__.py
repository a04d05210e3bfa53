"""Test masks and solvers of your own: assertions, and hypothesis strategies that draw what breaks careless code.

Needs the extra "test": ``pip install "transmask[test]"``. A property test of a mask function of your own reads

    from hypothesis import given
    from transmask.testing import assert_transposable, patterns, weights

    @given(weights(), patterns())
    def test_my_mask(array, pattern):
        assert_transposable(my_mask(array, pattern.n, pattern.m), pattern)

and a test of a solver of your own

    from transmask.testing import assert_solver_contract

    def test_my_solver():
        assert_solver_contract("my_solver")
"""

from .assertions import assert_optimal, assert_transposable
from .contract import assert_solver_contract
from .strategies import DTYPES, masks, patterns, weights

__all__ = [
    "DTYPES",
    "assert_optimal",
    "assert_solver_contract",
    "assert_transposable",
    "masks",
    "patterns",
    "weights",
]
