"""From unstructured sparsity to N:M: for each layer, the sparsest pattern that its zeros already support."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import torch
from scipy.special import bdtrc
from torch import nn

from ..._arguments import as_integer
from ...errors import InvalidArgumentError, InvalidTypeError
from ...pattern import Pattern
from ..layouts import PRUNED_LIVE, Allowed
from ..selection import select_weights
from .gram import unobservable
from .reconstruct import reconstruct
from .report import ReconstructionReport

__all__ = ["convert_unstructured", "supported_pattern"]

_GROUP_SIZE = "It is the group size, 8 in '4:8'."


def supported_pattern(sparsity: float, m: int, *, confidence: float = 0.95) -> Pattern:
    """Return the sparsest N:M that unstructured zeros already support.

    If each entry were zero with probability p, independently, a group of M would hold at least k zeros with probability

        P_k = sum_{i >= k} C(M, i) p^i (1 - p)^(M - i)

    and N = M - max { k : P_k > confidence }.

    Parameters
    ----------
    sparsity : float
        Fraction p of the entries that are zero.
    m : int
        Group size, at least 1.
    confidence : float, default 0.95
        Between 0 and 1.

    Returns
    -------
    Pattern
        At least one entry is kept.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used.

    References
    ----------
    Hubara et al. 2021, "Accelerated Sparse Neural Training", section 5, from unstructured to structured sparsity.

    Examples
    --------
    >>> str(supported_pattern(0.9, 8)), str(supported_pattern(0.5, 8))
    ('2:8', '6:8')
    """
    m = as_integer(m, argument="m", remedy=_GROUP_SIZE)
    sparsity, confidence = _as_share(sparsity, "sparsity"), _as_share(confidence, "confidence")
    zeros = max((k for k in range(1, m) if bdtrc(k - 1, m, sparsity) > confidence), default=0)
    return Pattern(m - zeros, m)


def _as_share(value: float, argument: str) -> float:
    """Return a number between 0 and 1 of any type as float."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        share = float(value)
    except (TypeError, ValueError, RuntimeError):  # the last is torch's, for more than one entry
        raise InvalidTypeError(f"`{argument}` must be a number, got {type(value).__name__}.") from None
    if not 0 <= share <= 1:
        raise InvalidArgumentError(f"`{argument}` must lie between 0 and 1, got {value}.")
    return share


def convert_unstructured(
    model: nn.Module,
    calibration: Iterable[Any],
    m: int,
    *,
    confidence: float = 0.95,
    transposable: bool = True,
    **options: Any,
) -> ReconstructionReport:
    """Turn a model with unstructured zeros into one with N:M zeros: choose N for each layer, prune, refit.

    Parameters
    ----------
    model : torch.nn.Module
        With zeros in its weights (torch.nn.utils.prune made permanent). Modified in place; unchanged if an error is
        raised.
    calibration : iterable
        As in `reconstruct`.
    m : int
        Group size.
    confidence : float, default 0.95
        As in `supported_pattern`: the higher it is, the less is pruned beyond what is already zero.
    transposable : bool, default True
        As in `sparsify`.
    **options
        Passed to `reconstruct`: method, sequential, scores, constraint, solver, batch_norm, forward, row_weights,
        offload, progress, allow.

    Returns
    -------
    ReconstructionReport
        It lists layers with too few zeros for any N < M among those that were skipped.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        As `reconstruct`; also if no layer supports a pattern.

    References
    ----------
    Hubara et al. 2021, "Accelerated Sparse Neural Training", section 5, from unstructured to structured sparsity.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    >>> for layer in (model[0], model[2]):
    ...     _ = nn.utils.prune.remove(nn.utils.prune.l1_unstructured(layer, "weight", 0.8), "weight")
    >>> report = convert_unstructured(model, [torch.randn(64, 16)], 8)
    >>> [str(fit.pattern) for fit in report.fits]
    ['4:8', '4:8']
    """
    m = as_integer(m, argument="m", remedy=_GROUP_SIZE)
    if m < 2:
        raise InvalidArgumentError(f"`m` must be at least 2, got {m}. It is the group size, 8 in '4:8'.")
    found, left = _supported_patterns(model, m, confidence, transposable, options.get("allow", ()))
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:8])
        raise InvalidArgumentError(
            f"`model` must have a weight with enough zeros for N < {m}, got none: {reasons}. Prune it first."
        )
    report = reconstruct(model, calibration, found, transposable=transposable, **options)
    return replace(report, left=tuple((name, left.get(name, reason)) for name, reason in report.left))


def _supported_patterns(
    model: nn.Module, m: int, confidence: float, transposable: bool, allow: Collection[Allowed]
) -> tuple[dict[str, Pattern], dict[str, str]]:
    """Choose the pattern of each weight; say which have too few zeros, or a mask that is not permanent yet."""
    report = select_weights(
        model, Pattern(1, m), transposable=transposable, allow=allow, shared=True, refuse=unobservable(model)
    )
    found: dict[str, Pattern] = {}
    left = {choice.name: choice.reason for choice in report if choice.reason == PRUNED_LIVE}
    for choice in report.taken:
        assert choice.layout is not None
        weight = getattr(choice.module, choice.attribute)
        sparsity = 1 - torch.count_nonzero(weight).item() / weight.numel()
        pattern = supported_pattern(sparsity, m, confidence=confidence)
        sides = choice.layout.sides(choice.shape)
        if pattern.n < min(m, max(sides) if transposable else sides[choice.layout.reduction]):
            found[choice.name] = pattern
        else:
            left[choice.name] = f"{sparsity:.1%} zeros support no pattern sparser than {pattern}"
    return found, left
