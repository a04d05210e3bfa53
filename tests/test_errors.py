"""The exceptions: what catches them, and the one form that messages take."""

import pickle
import re

import numpy as np
import pytest

import transmask as tm
from transmask import errors
from transmask.errors import unknown_choice


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (tm.InvalidArgumentError, ValueError),
        (tm.InvalidTypeError, TypeError),
        (tm.UnsupportedPatternError, ValueError),
        (tm.CheckpointError, ValueError),
        (tm.MissingDependencyError, ImportError),
        (tm.SolverError, RuntimeError),
    ],
)
def test_each_is_one_of_ours_and_the_builtin_a_caller_expects(error, builtin):
    assert issubclass(error, tm.TransmaskError)
    assert issubclass(error, builtin)
    assert str(pickle.loads(pickle.dumps(error("why")))) == "why"


def test_the_public_names_are_all_there_is():
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert defined | {"unknown_choice"} == set(errors.__all__)
    assert defined <= set(tm.__all__)


@pytest.mark.parametrize(
    ("value", "choices", "expected"),
    [
        ("gredy", ["greedy", "milp"], "`x` must be one of 'greedy', 'milp', got 'gredy'. Did you mean 'greedy'?"),
        ("zzz", ["greedy", "milp"], "`x` must be one of 'greedy', 'milp', got 'zzz'."),
        (None, ["a"], "`x` must be one of 'a', got None."),
        (np.float32(1), ["a"], "`x` must be one of 'a', got np.float32(1.0)."),
    ],
)
def test_an_unknown_choice_lists_what_there_is_and_the_closest(value, choices, expected):
    assert str(unknown_choice("x", value, iter(choices))) == expected


MATRIX = np.ones((4, 4))


@pytest.mark.parametrize(
    "call",
    [
        lambda: tm.solve([1.0], "2:4"),
        lambda: tm.solve(MATRIX * np.nan, "2:4"),
        lambda: tm.solve(MATRIX * 1e301, "2:4"),
        lambda: tm.solve(MATRIX * 1j, "2:4"),
        lambda: tm.solve(MATRIX, "4:2"),
        lambda: tm.solve(MATRIX, "2-4"),
        lambda: tm.solve(MATRIX, (1.5, 4)),
        lambda: tm.solve(MATRIX, "2:4", constraint="exact"),
        lambda: tm.solve(MATRIX, "2:4", solver="milpp"),
        lambda: tm.solve(MATRIX, "2:4", solver=3),
        lambda: tm.solve(MATRIX, "8:16", solver="enumeration"),
        lambda: tm.solve(MATRIX, "2:4", axes=(0, 0)),
        lambda: tm.solve(MATRIX, "2:4", axes=0),
        lambda: tm.solve(MATRIX, "2:4", threads=0),
        lambda: tm.solve(MATRIX, "2:4", threads="all"),
        lambda: tm.solve(MATRIX, "2:4", solver="milp", start=tm.solve(MATRIX, "2:4")),
        lambda: tm.certify(MATRIX, MATRIX, "2:4"),
        lambda: tm.certify(MATRIX, np.eye(3), "2:4"),
        lambda: tm.check_mask(MATRIX * 2, "2:4"),
        lambda: tm.nm_mask(MATRIX, "2:4", axis=5),
        lambda: tm.Pattern.from_zeros(5, 4),
        lambda: tm.Pattern.from_apex("2:4"),
    ],
)
def test_every_message_has_the_one_form(call):
    """`argument` must <requirement>[,:] [but] got <value>. <Remedy.>, on one line."""
    with pytest.raises(tm.TransmaskError) as raised:
        call()
    assert re.fullmatch(r"`\w+`( .\w+.)? must .+(, got .+|, but .+)\.?[^\n]*[.?]", str(raised.value)), str(raised.value)
