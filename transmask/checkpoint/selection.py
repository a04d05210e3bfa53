"""Which tensors of a checkpoint are pruned, along which axes, and why the others are not.

A tensor is pruned if it is floating-point, has at least two axes, both axes of its matrix have at least M entries, and
its name is not that of an embedding (which includes positional encodings and codebooks), a normalisation, a bias, a
quantisation scale, or a state or token that is itself a parameter, such as ``A_log`` or ``cls_token``. Only the last
two parts of a name count, the parameter's own and that of the module that holds it: ``model.embed_tokens.weight`` is an
embedding, ``patch_embed.proj.weight`` a convolution.

The axes are those of torch: the last two of a linear layer, (0, 1) of a convolution (K, C, ...) of any number of
dimensions. A tensor with three or four axes whose name says that it holds experts, stacked along the first axes, is a
batch of linear layers and takes the last two; ``experts.0.conv.weight`` belongs to one expert and does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InvalidArgumentError, InvalidTypeError
from ..pattern import Pattern
from ._base import TensorInfo

__all__ = ["Selection", "matching_names", "matrix_axes", "select_tensors"]

# What is matched against a part of a lower-case name, and how many of its last parts are looked at. Hugging Face has
# embed_tokens, word_embeddings, wte, wpe, shared (T5) and relative_attention_bias; timm pos_embed and
# relative_position_bias_table; others emb, embedding_table, pe, positional_encoding and codebook. Mamba has A_log,
# Perceiver latents, vision transformers cls_token. Projections such as time_emb_proj are linear layers.
NAMED = (
    ("embedding", 2, r"(\w*_)?emb(ed)?s?(_(tokens?\w*|positions?|in|out|table))?|\w*embeddings?(_table)?"),
    ("embedding", 2, r"w[tp]e|shared|(\w*_)?rel(ative)?_pos(_\w+)?"),
    ("embedding", 2, r"(\w*_)?(pos(itional)?|position)_enc(oding)?s?|pe|codebooks?"),
    ("normalisation", 2, r"\w*norm\d*|norm\d*_\w+|(\w+_)?(ln|bn|gn)\d*|ln_\w+"),
    ("bias", 2, r"\w*bias(_table)?"),
    ("quantisation scale", 1, r"(\w*_)?scales?(_inv)?|(\w*_)?(zero_points?|qzeros|absmax)"),
    ("state or token", 1, r"a_log|(\w*_)?(latents?|queries|tokens?)"),
)
EXPERTS = re.compile(r"experts?(?!s|[./_]?\d)", re.IGNORECASE)  # a number would name a single expert


@dataclass(frozen=True, slots=True)
class Selection:
    """A tensor, and whether it is pruned.

    Attributes
    ----------
    tensor : TensorInfo
    axes : tuple of two int or None
        The axes that form its matrix; None if it is not pruned.
    reason : str
        Why it is not pruned; empty if it is.
    """

    tensor: TensorInfo
    axes: tuple[int, int] | None
    reason: str


def select_tensors(
    tensors: Iterable[TensorInfo], pattern: Pattern, *, include: str | None = None, exclude: str | None = None
) -> tuple[Selection, ...]:
    """Decide for every tensor whether it is pruned.

    Parameters
    ----------
    tensors : iterable of TensorInfo
    pattern : Pattern
    include : str, optional
        Regular expression, searched for in the name. Only tensors that match are pruned, even those whose name is that
        of an embedding, a normalisation or another kind that is normally skipped.
    exclude : str, optional
        Regular expression, searched for in the name. Tensors that match are not pruned.

    Returns
    -------
    tuple of Selection
        One for each tensor, in their order.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `include` or `exclude` is not a regular expression.

    Examples
    --------
    >>> import numpy as np
    >>> from transmask import Pattern
    >>> tensor = TensorInfo("model.embed_tokens.weight", (100, 8), "float32", np.dtype("float32"))
    >>> select_tensors([tensor], Pattern(2, 4))[0].reason
    'embedding by its name'
    """
    wanted, unwanted = _compiled(include, "include"), _compiled(exclude, "exclude")
    return tuple(_select(tensor, pattern.m, wanted, unwanted) for tensor in tensors)


def matching_names(names: Iterable[str], *, include: str | None, exclude: str | None) -> list[str]:
    """Return the names in which `include` is found, if it is given, and `exclude` is not.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `include` or `exclude` is not a regular expression.
    """
    wanted, unwanted = _compiled(include, "include"), _compiled(exclude, "exclude")
    return [
        name
        for name in names
        if (wanted is None or wanted.search(name)) and not (unwanted is not None and unwanted.search(name))
    ]


def _compiled(expression: str | None, argument: str) -> re.Pattern[str] | None:
    """Compile a regular expression given by the user."""
    if expression is None:
        return None
    if not isinstance(expression, str):
        raise InvalidTypeError(f"`{argument}` must be a regular expression, got {expression!r}.")
    try:
        return re.compile(expression)
    except re.error as error:
        raise InvalidArgumentError(
            f"`{argument}` must be a regular expression, got {expression!r}: {error}. Write a literal one with a \\."
        ) from None


def _select(tensor: TensorInfo, m: int, wanted: re.Pattern[str] | None, unwanted: re.Pattern[str] | None) -> Selection:
    """Decide for one tensor."""
    axes = matrix_axes(tensor) if len(tensor.shape) >= 2 else (0, 0)
    sides = [tensor.shape[axis] for axis in axes] if len(tensor.shape) >= 2 else []
    if not tensor.is_floating:
        reason = f"{tensor.dtype} is not floating"
    elif len(tensor.shape) < 2:
        reason = f"{len(tensor.shape)}-d, not a matrix"
    elif unwanted is not None and unwanted.search(tensor.name):
        reason = "excluded"
    elif wanted is not None and not wanted.search(tensor.name):
        reason = "not included"
    elif wanted is None and (kind := _kind_by_name(tensor.name)):
        reason = f"{kind} by its name"
    elif tensor.size == 0:
        reason = "empty"
    elif min(sides) < m:
        reason = f"{sides[0]} x {sides[1]} is smaller than M = {m}"
    else:
        return Selection(tensor, axes, "")
    return Selection(tensor, None, reason)


def matrix_axes(tensor: TensorInfo) -> tuple[int, int]:
    """Return the two axes that form the matrix of a tensor with at least two axes."""
    n_axes = len(tensor.shape)
    if n_axes in (3, 4) and EXPERTS.search(tensor.name):
        return n_axes - 2, n_axes - 1
    return 0, 1


def _kind_by_name(name: str) -> str:
    """Say which kind of parameter that is not pruned a name stands for; empty if none."""
    parts = re.split(r"[./]", name.lower())
    for kind, depth, expression in NAMED:
        if any(re.fullmatch(expression, part) for part in parts[-depth:]):
            return kind
    return ""
