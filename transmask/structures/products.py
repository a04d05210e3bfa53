"""A structure for each layer of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidArgumentError, InvalidTypeError
from .mask_count import MaskCount
from .structure import Structure, StructureReport

__all__ = ["Product"]

Given = TypeVar("Given")


class Product:
    """A structure for each layer of a network, chosen independently.

    Parameters
    ----------
    layers : mapping of str to Structure
        Structures by the names of the layers.

    Raises
    ------
    InvalidTypeError
        If a value is not a Structure.

    Examples
    --------
    >>> from transmask import Transposable, Unstructured
    >>> network = Product({"hidden": Transposable(2, 4), "out": Unstructured(0.5)})
    >>> network.count({"hidden": (4, 4), "out": (2, 2)}).value == 90 * 6
    True
    """

    __slots__ = ("layers",)

    def __init__(self, layers: Mapping[str, Structure]) -> None:
        for name, structure in layers.items():
            if not isinstance(structure, Structure):
                raise InvalidTypeError(f"`layers` must map names to structures, got {structure!r} for {name!r}.")
        self.layers = dict(layers)

    def __repr__(self) -> str:
        return f"Product({self.layers!r})"

    def __str__(self) -> str:
        return "product of " + ", ".join(dict.fromkeys(map(str, self.layers.values())))

    def count(self, shapes: Mapping[str, Sequence[int]]) -> MaskCount:
        """Count the masks of all layers together: the product of their counts.

        Parameters
        ----------
        shapes : mapping of str to sequence of int
            The shape of every layer.

        Returns
        -------
        MaskCount

        Raises
        ------
        InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
            If the names differ, or as `Structure.count` for a layer.
        """
        counts = (structure.count(shape) for _, structure, shape in self.match(shapes, "shapes"))
        return math.prod(counts, start=MaskCount(()))

    def best_mask(self, weights: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.bool_]]:
        """Find the best mask of every layer.

        Parameters
        ----------
        weights : mapping of str to array_like
            The weights of every layer.

        Returns
        -------
        dict of str to ndarray of bool
            In the order of the layers.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If the names differ, or as `Structure.best_mask` for a layer.
        """
        return {name: structure.best_mask(layer) for name, structure, layer in self.match(weights, "weights")}

    def check(self, masks: Mapping[str, ArrayLike]) -> dict[str, StructureReport]:
        """Check the mask of every layer.

        Parameters
        ----------
        masks : mapping of str to array_like
            The mask of every layer.

        Returns
        -------
        dict of str to StructureReport
            The masks belong if ``all(reports.values())``.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If the names differ, or as `Structure.check` for a layer.
        """
        return {name: structure.check(mask) for name, structure, mask in self.match(masks, "masks")}

    def match(self, given: Mapping[str, Given], argument: str) -> list[tuple[str, Structure, Given]]:
        """Pair every layer's structure with what is given for it.

        Parameters
        ----------
        given : mapping of str to anything
            With the names of the layers, in any order.
        argument : str
            What error messages call it.

        Returns
        -------
        list of (name, structure, given)
            In the order of the layers.

        Raises
        ------
        InvalidTypeError
            If `given` is not a mapping.
        InvalidArgumentError
            If the names differ.
        """
        if not isinstance(given, Mapping):
            raise InvalidTypeError(f"`{argument}` must map the names of the layers, got {type(given).__name__}.")
        if given.keys() != self.layers.keys():
            wanted, got = (", ".join(map(repr, names)) or "none" for names in (self.layers, given))
            raise InvalidArgumentError(f"`{argument}` must have the layers {wanted}, got {got}.")
        return [(name, structure, given[name]) for name, structure in self.layers.items()]
