"""AdaPrune: the same problem by Adam, as in the paper that introduced it.

Method
    Adam on the kept weights and, with a rate of its own, on the bias, starting from S * W; the best iterate is
    returned. The published code keeps every activation in memory and draws mini-batches of 50; here the gradient of the
    whole calibration set comes from the Gram matrix, so nothing is kept and nothing is random. The published code
    ignores the rates it is given, skips linear layers in silence, and returns the last iterate.
Guarantee
    Never worse than S * W on the calibration data.
Cost
    K * D^2 multiplications an iteration.
When not to use it
    `LeastSquares` finds the minimum in one step. This is here to compare with the paper.

References
----------
Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
Masks", section 5; Kingma and Ba 2015, "Adam".
"""

from __future__ import annotations

import torch

from ..._arguments import as_integer
from ...errors import InvalidArgumentError
from .layer_problem import Fit, LayerProblem, ReconstructionMethod

__all__ = ["AdaPrune"]


class AdaPrune(ReconstructionMethod):
    """Minimise by Adam; see the module's docstring.

    Parameters
    ----------
    max_iterations : int, default 1000
    learning_rate : float, default 1e-3
        Of the weights.
    bias_learning_rate : float, default 1e-2

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `max_iterations` is not an integer of at least 1, or a rate is not positive and finite.

    Examples
    --------
    >>> AdaPrune(max_iterations=200).max_iterations
    200
    """

    def __init__(
        self, max_iterations: int = 1000, *, learning_rate: float = 1e-3, bias_learning_rate: float = 1e-2
    ) -> None:
        self.max_iterations = as_integer(max_iterations, argument="max_iterations", least=1)
        for argument, rate in (("learning_rate", learning_rate), ("bias_learning_rate", bias_learning_rate)):
            if not 0 < rate < float("inf"):
                raise InvalidArgumentError(f"`{argument}` must be positive and finite, got {rate}.")
        self.learning_rate, self.bias_learning_rate = learning_rate, bias_learning_rate

    @torch.no_grad()
    def fit(self, problem: LayerProblem, *, name: str) -> Fit:
        """Solve one layer; see `ReconstructionMethod.fit`."""
        inputs = problem.gram.shape[1] - problem.has_bias
        weight, bias = torch.split(problem.masked(), [inputs, int(problem.has_bias)], dim=2)
        weight, bias = weight.clone(), bias.clone()
        groups = [{"params": [weight], "lr": self.learning_rate}, {"params": [bias], "lr": self.bias_learning_rate}]
        optimizer = torch.optim.Adam(groups)
        # With the squared outputs as the unit, Adam's epsilon means the same for every layer.
        scale = (problem.weight @ problem.gram * problem.weight).sum().clamp(min=torch.finfo(torch.float64).tiny)
        best, best_loss = torch.cat([weight, bias], dim=2), float("inf")
        for _ in range(self.max_iterations + 1):
            present = torch.cat([weight, bias], dim=2)
            difference = present - problem.weight
            product = difference @ problem.gram / scale
            loss = float((product * difference).sum())
            if loss < best_loss:
                best, best_loss = present, loss
            gradient = (2 * product).masked_fill(~problem.mask, 0)
            weight.grad, bias.grad = torch.split(gradient, [inputs, int(problem.has_bias)], dim=2)
            optimizer.step()
        return Fit(best)
