"""Put masks on the weights of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn
from torch.nn.utils import parametrize

from ...solvers import Solver
from ..choices import Patterns, choose_weights
from ..layouts import Allowed
from ..selection import LayerFilter, Layouts, SelectionReport, refuse_other_than_module, untrainable
from .controller import MaskController
from .loading import load_masks
from .masked_weight import Estimator, MaskedWeight, TrainingRule
from .sharding import refuse_sharded, whole

__all__ = ["sparsify"]


def sparsify(
    model: nn.Module,
    pattern: Patterns,
    *,
    transposable: bool = True,
    layers: LayerFilter = None,
    skip_ends: bool = False,
    allow: Collection[Allowed] = (),
    layouts: Layouts = None,
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    refresh_every: int | Callable[[int], bool] = 40,
    estimator: Estimator = "sr-ste",
    decay: float | Callable[[int], float] = 2e-4,
) -> MaskController:
    """Put masks on the weights of a model, found from their current values.

    Each masked weight W becomes a parametrisation: the model computes with S * W, and the optimizer trains W.
    Parameters keep their identity. If an error is raised, the model is unchanged.

    Parameters
    ----------
    model : torch.nn.Module
        Modified in place. Masks go on linear layers (the Conv1D of transformers is one), on convolutions (the matrix at
        each kernel position) and on the packed projections of MultiheadAttention.
    pattern : Pattern, str, tuple of two int, or mapping of str to those
        Such as "2:4": N entries kept of every M. A mapping from names or wildcards of parameters or of their modules,
        such as ``{"*": "4:8", "*.attention": "2:4"}``, gives each its own; of two that match, the later one counts.
    transposable : bool, default True
        Hold the pattern in rows and columns (Hubara et al. 2021). False: only along the reduction axis, by magnitude
        (Zhou et al. 2021).
    layers : str, iterable of str or callable, optional
        Names or wildcards ("encoder.*") of parameters or of their modules, or a predicate of a parameter's name and
        its module. Default: every weight that can carry a mask; the controller's report lists them all.
    skip_ends : bool, default False
        Leave the first and the last weight dense, in the order in which the modules were registered.
    allow : collection of {"grouped", "depthwise", "transposed"}
        Kinds of convolutions that stay dense unless named here.
    layouts : mapping of str to tuple of two int, optional
        Names or wildcards of parameters that are multiplied as matrices in a way that torch's layers do not, and the
        axes of their outputs and inputs: ``{"experts.gate_up_proj": (1, 2)}`` for a stack of experts (E, out, in).
    constraint : {"exactly", "at_most"}, default "exactly"
    solver : str or Solver, default "auto"
        As in `transmask.transposable_mask`.
    refresh_every : int or callable, default 40
        Optimizer steps between two refreshes of the masks; or a function that is given the number of steps done and
        tells whether a refresh is due, as in ``lambda steps: steps < 1000 and steps % 10 == 0``.
    estimator : {"sr-ste", "ste", "fixed"}, default "sr-ste"
        "sr-ste": straight-through gradient, pruned weights decay. "ste": the same without decay. "fixed": the first
        masks stay, and pruned weights get no gradient.
    decay : float or callable, default 2e-4
        Adds ``decay * W`` to the gradient of a pruned weight W, once per optimizer step; or a function of the number of
        steps done, for a ramp.

    Returns
    -------
    MaskController
        Attach your optimizer to it, ``controller.attach(optimizer)``, or the masks are never refreshed.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
        If an argument cannot be used, a weight is NaN or infinite, or no layer can take the pattern.

    References
    ----------
    Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", section 4.
    Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
    Masks", section 4.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> controller = sparsify(model, "2:4")
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> controller.attach(optimizer)
    MaskController(Sequential: 2 masks, 192 weights)
    >>> model(torch.ones(1, 8)).sum().backward()
    >>> optimizer.step()
    >>> controller.remove()
    >>> float((model[0].weight == 0).float().mean())
    0.5
    """
    training_rule = TrainingRule(estimator, refresh_every, decay)
    refuse_other_than_module(model, "model")
    refuse_sharded(
        model,
        "get its masks before it is sharded",
        "Call sparsify first, then fully_shard, and make the optimizer last.",
    )
    choices = choose_weights(
        model,
        pattern,
        (transposable, constraint, solver),
        layers=layers,
        skip_ends=skip_ends,
        allow=allow,
        layouts=layouts,
        refuse=untrainable,
    )
    found = []
    for choice, rule in choices:
        if choice.taken:
            assert choice.layout is not None
            weight = getattr(choice.module, choice.attribute)
            mask = rule.find(whole(weight), choice.layout, name=choice.name)
            found.append((choice, MaskedWeight(mask.to(weight.device), choice.layout, rule, training_rule)))
    for choice, masked in found:
        parametrize.register_parametrization(choice.module, choice.attribute, masked)
    load_handle = model.register_load_state_dict_pre_hook(load_masks)  # type: ignore[no-untyped-call]
    report = SelectionReport(choice for choice, _ in choices)
    return MaskController(model, report, load_handle=load_handle)
