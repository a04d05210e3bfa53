"""What a solver from elsewhere answers is never believed: its type, its shape, and every line are checked."""

import numpy as np
import pytest

import transmask as tm
from transmask.solvers import Enumeration, Greedy, Solver, SolverInfo
from transmask.solvers._base import is_built_in

WEIGHTS = np.random.default_rng(0).random((3, 8, 10))


class Elsewhere(Solver):
    """Returns what it is given."""

    info = SolverInfo("elsewhere", "Elsewhere", "exact", ("exactly", "at_most"), None, "numpy", "unpublished")

    def __init__(self, answer):
        self.answer = answer

    def solve_scores(self, scores, pattern, constraint):
        return self.answer(Enumeration().solve_scores(scores, pattern, constraint))


def find(function, solver, **options):
    return function(WEIGHTS, "2:4", solver=solver, **options)


@pytest.fixture(params=[tm.transposable_mask, tm.solve])
def function(request):
    return request.param


def one_more(mask):
    mask[:, 0, :] = True
    return mask


def one_less(mask):
    mask[:, :, -1] = False
    return mask


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda mask: mask.astype(float), r"must return masks of bool of shape \(\d+, 4, 4\), got float64 of shape"),
        (lambda mask: np.where(mask, 1.0, np.nan), "got float64 of shape"),
        (lambda mask: mask.astype(np.int8), "got int8 of shape"),
        (lambda mask: mask.ravel(), r"got bool of shape \(\d+,\)"),
        (lambda mask: mask[:, :3], r"got bool of shape \(\d+, 3, 4\)"),
        (lambda mask: None, "got NoneType"),
        (lambda mask: mask.tolist(), "got list"),
        (lambda mask: mask | True, r"exactly 2 of every 4, but matrix \(0,\), row 0, columns 0 to 3 keeps 4"),
        (
            lambda mask: mask & False,
            r"exactly 2 of every 4, but matrix \(0,\), row 0, columns 0 to 3 keeps 0",
        ),
        (one_more, r"row 0, columns 0 to 3 keeps 4, more than 2 of 4"),
        (one_less, r"matrix \(0,\), row \d, columns 0 to 3 keeps 1, fewer than 2 of 4"),
        (lambda mask: 1 // 0, "must return masks, got ZeroDivisionError: "),
    ],
)
def test_a_wrong_answer_is_one_line_that_names_the_solver(function, answer, message):
    with pytest.raises(tm.SolverError, match=message) as error:
        find(function, Elsewhere(answer))
    assert str(error.value).startswith("`solver` 'elsewhere' must ")
    assert "\n" not in str(error.value)


def test_a_right_answer_passes(function):
    found = find(function, Elsewhere(lambda mask: mask))
    mask = found if function is tm.transposable_mask else found.mask
    assert np.array_equal(mask, tm.transposable_mask(WEIGHTS, "2:4", solver="enumeration"))


def test_at_most_is_judged_as_at_most(function):
    find(function, Elsewhere(one_less), constraint="at_most")
    with pytest.raises(tm.SolverError, match="must keep at most 2 of every 4, but"):
        find(function, Elsewhere(one_more), constraint="at_most")


def test_one_that_writes_its_masks_itself_is_checked_too(function):
    class InPlace(Elsewhere):
        def solve_blocks(self, blocks, pattern, *, threads, warm):
            blocks.mask[...] = True

    with pytest.raises(tm.SolverError, match="must keep exactly 2 of every 4"):
        find(function, InPlace(lambda mask: mask))


def test_a_subclass_of_a_built_in_solver_is_not_built_in(function):
    class Mine(Greedy):
        def solve_scores(self, scores, pattern, constraint):
            return np.ones(scores.shape, bool)

    assert is_built_in(Greedy())
    assert not is_built_in(Mine())
    with pytest.raises(tm.SolverError, match="`solver` 'greedy' must keep exactly 2 of every 4"):
        find(function, Mine())


def test_errors_of_our_own_and_interrupts_pass(function):
    def interrupt(mask):
        raise KeyboardInterrupt

    def refuse(mask):
        raise tm.UnsupportedPatternError("not this one")

    with pytest.raises(KeyboardInterrupt):
        find(function, Elsewhere(interrupt))
    with pytest.raises(tm.UnsupportedPatternError, match="not this one"):
        find(function, Elsewhere(refuse))
