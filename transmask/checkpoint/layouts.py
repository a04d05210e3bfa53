"""Which two axes of a tensor form its matrix: the one place that knows how frameworks lay out their weights.

`CONVENTIONS` has a row for each layout that can be recognised by the tensor's name, its number of axes and the
``format`` entry of the file's metadata; the first row that fits counts. What no row names is a convolution if its shape
leaves no doubt. What can be read in several ways is not pruned: a mask along the wrong axes would pass every check that
looks along the same ones.

Axes are listed outputs first where they are known, so that a row of the matrix is what makes one output. The kernel of
a convolution stands last in torch, (out, in, h, w), in the middle in MLX, (out, h, w, in), and first in JAX, Flax,
Keras and TensorFlow, (h, w, in, out).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["CONVENTIONS", "Axes", "Convention", "readings_of"]

Axes: TypeAlias = tuple[int, int]

LARGEST_KERNEL = 31  # the longest side a kernel is believed to have; 31 x 31 is RepLKNet's
LARGEST_UNNAMED = 7  # of three axes where no name says conv: torch.nn.Bilinear and stacked heads have longer sides


@dataclass(frozen=True, slots=True)
class Convention:
    """A layout that can be recognised.

    Attributes
    ----------
    layout : str
        The layout in words.
    names : re.Pattern
        Searched for in the tensor's name.
    n_axes : tuple of int
        How many axes such a tensor has.
    axes : tuple of tuple of two int
        The axes that form the matrix, negative ones from the end; several where they cannot be told.
    formats : tuple of str
        What the metadata entry ``format`` may be; empty if it does not matter.
    fits : callable
        Whether a shape can be meant.
    """

    layout: str
    names: re.Pattern[str]
    n_axes: tuple[int, ...]
    axes: tuple[Axes, ...]
    formats: tuple[str, ...] = ()
    fits: Callable[[tuple[int, ...]], bool] = field(default=lambda shape: True)

    def covers(self, name: str, shape: tuple[int, ...], form: str) -> bool:
        """Tell whether a tensor of a file of this format is laid out like this."""
        return (
            len(shape) in self.n_axes
            and (not self.formats or form in self.formats)
            and self.names.search(name) is not None
            and self.fits(shape)
        )


def _ends(modules: str, leaf: str) -> re.Pattern[str]:
    """Match names that end with one of the modules and a leaf, or with the module alone where that is a parameter."""
    return re.compile(rf"(?:^|[./])(?:{modules})(?:[./](?:{leaf}))?$", re.IGNORECASE)


def _is_like_a_kernel(shape: tuple[int, ...]) -> bool:
    """Whether the last side of three looks like the kernel of a torch convolution."""
    return shape[-1] <= LARGEST_KERNEL and shape[-1] < min(shape[:-1])


ANY = re.compile("")
CONV = re.compile(r"conv[^./]*(?:[./][^./]+){0,2}$", re.IGNORECASE)  # in one of the last three parts
EXPERTS = re.compile(r"experts?(?!s|[./_]?\d)", re.IGNORECASE)  # a number would name a single expert
LINEAR = r"(?:\w+_)?proj(?:_\w+)?|w[123io](?:_\d)?|fc_?\d*|\w*linear\w*|\w*dense\w*"
STACKED = r"(?:gate|up|down|gate_up)_proj|(?:in|out)put_linear|(?:feed_forward|cond_ffn)[./]w[123]"
FLAX_ATTENTION = r"query|key|value|[qkv](?:_proj)?"

CONVENTIONS: tuple[Convention, ...] = (
    # transformers.pytorch_utils.Conv1D stores (in, out); told from nanoGPT's Linear of the same name by its shape.
    Convention("GPT-2's Conv1D: in, out", _ends("c_attn|c_fc", "weight"), (2,), ((1, 0),), fits=lambda s: s[1] > s[0]),
    Convention("GPT-2's Conv1D: in, out", _ends(r"mlp\.c_proj", "weight"), (2,), ((1, 0),), fits=lambda s: s[0] > s[1]),
    Convention("Flax, Keras: in, out", re.compile(r"(?:^|[./])kernel(?::0)?$"), (2,), ((1, 0),)),
    Convention("matrices: out, in", ANY, (2,), ((0, 1),)),
    Convention("experts, out, in", EXPERTS, (3, 4), ((-2, -1),)),
    # github.com/TransformerLensOrg/TransformerLens: W_Q is (head, d_model, d_head), W_O (head, d_head, d_model).
    Convention("TransformerLens: heads, in, out", re.compile(r"(?:^|\.)_?W_[QKVO]$"), (3,), ((-1, -2),)),
    # modeling_xlnet.py: q, k, v, o and r are all (d_model, n_head, d_head).
    Convention("XLNet: model, heads, head", re.compile(r"rel_attn\.[qkvor]$"), (3,), ((2, 0),)),
    # github.com/google-deepmind/gemma: q_einsum (N, D, H), kv_einsum (2, K, D, H), attn_vec_einsum (N, H, D).
    Convention("Gemma's einsum: heads, in, out", _ends(r"\w*einsum", "w"), (3, 4), ((-1, -2),)),
    # flax.linen.MultiHeadDotProductAttention, keras.layers.MultiHeadAttention; each head is a matrix. With four axes
    # layers are stacked, along the first axis (nn.scan) or the second (T5X, MaxText).
    Convention("Flax: model, heads, head", _ends(FLAX_ATTENTION, "kernel(?::0)?"), (3,), ((2, 0),)),
    Convention("Flax: heads, head, model", _ends("out|o_proj|attention_output", "kernel(?::0)?"), (3,), ((2, 1),)),
    Convention(
        "stacked attention kernels of Flax",
        _ends(f"{FLAX_ATTENTION}|out|o_proj|attention_output", "kernel(?::0)?"),
        (4,),
        ((3, 1), (3, 2), (3, 0)),
    ),
    Convention(
        "Flax: kernel, in, out",
        re.compile(r"conv[^./]*(?:[./][^./]+)?[./]kernel(?::0)?$", re.IGNORECASE),
        (3, 4, 5),
        ((-1, -2),),
    ),
    Convention("stacked kernels of Flax", re.compile(r"(?:^|[./])kernel(?::0)?$"), (3,), ((2, 1), (2, 0))),
    # mlx.nn.Conv1d, Conv2d, Conv3d; mlx_lm's SwitchLinear is (experts, out, in).
    Convention("MLX: out, kernel, in", ANY, (4, 5), ((0, -1),), formats=("mlx",)),
    Convention("MLX: out, kernel, in", CONV, (3,), ((0, -1),), formats=("mlx",)),
    Convention("MLX: stacked linear layers", _ends(LINEAR, "weight"), (3,), ((1, 2),), formats=("mlx",)),
    Convention("MLX, with three axes", ANY, (3,), ((0, 2), (1, 2)), formats=("mlx",)),
    Convention("torch: out, in, kernel", CONV, (3, 4, 5), ((0, 1),), formats=("pt",)),
    Convention("torch: out, in, kernel", CONV, (3,), ((0, 1),), fits=_is_like_a_kernel),
    Convention("a convolution with three axes", CONV, (3,), ((0, 1), (0, 2), (2, 1))),
    # A Conv1d of kernel 1 may be called like a linear layer; the feed-forward of FastSpeech is a Conv1d called w_1.
    Convention("torch: out, in, 1", ANY, (3,), ((0, 1),), fits=lambda s: s[2] == 1 < min(s[:2])),
    # Granite, JetMoE: input_linear; mlx_lm: switch_mlp.gate_proj; gpt-fast: cond_ffn.w1.
    Convention("stacked linear layers: out, in", _ends(STACKED, "weight"), (3,), ((1, 2),)),
    Convention(
        "linear layers by name, a convolution by shape",
        _ends(LINEAR, "weight"),
        (3,),
        ((1, 2), (0, 1)),
        fits=_is_like_a_kernel,
    ),
    Convention("stacked linear layers: out, in", _ends(LINEAR, "weight"), (3,), ((1, 2),)),
    Convention(
        "torch: out, in, kernel",
        ANY,
        (3,),
        ((0, 1),),
        fits=lambda s: s[2] <= LARGEST_UNNAMED and _is_like_a_kernel(s),
    ),
    Convention("three axes", ANY, (3,), ((1, 2), (0, 1), (0, 2))),
)
"""Every layout that is recognised by name; the first row that covers a tensor counts."""


def readings_of(name: str, shape: tuple[int, ...], metadata: Mapping[str, str]) -> tuple[Axes, ...]:
    """Return the axes that can form the matrix of a tensor with at least two axes.

    Parameters
    ----------
    name : str
    shape : tuple of int
    metadata : mapping of str to str
        That of its file.

    Returns
    -------
    tuple of tuple of two int
        One pair if it can be told, else several or none.

    Examples
    --------
    >>> readings_of("moe.input_linear.weight", (8, 64, 32), {}), readings_of("conv.weight", (64, 3, 7, 7), {})
    (((1, 2),), ((0, 1),))
    >>> readings_of("rotations", (8, 64, 64), {})
    ((1, 2), (0, 1), (0, 2))
    """
    n_axes = len(shape)
    form = metadata.get("format", "")
    for row in CONVENTIONS:
        if row.covers(name, shape, form):
            return tuple((first % n_axes, second % n_axes) for first, second in row.axes)
    return _convolutions(shape, form) if n_axes in (4, 5) else ()


def _convolutions(shape: tuple[int, ...], form: str) -> tuple[Axes, ...]:
    """Return the axes of a convolution with four or five axes that its shape allows.

    A torch kernel may have any small sides. One of MLX or JAX is believed only where all its sides are the same and at
    least 2: TextCNN has (100, 1, 3, 300), EEGNet (16, 1, 1, 64).
    """
    n = len(shape)
    torch, mlx, jax = (0, 1), (0, n - 1), (n - 1, n - 2)
    kernels = {torch: shape[2:], mlx: shape[1:-1], jax: shape[:-2]}
    possible = tuple(
        axes
        for axes, kernel in kernels.items()
        if max(kernel) <= LARGEST_KERNEL and (axes == torch or min(kernel) == max(kernel) > 1)
    )
    if form == "pt" and torch in possible:
        return (torch,)
    if torch in possible and mlx in possible:
        # (16, 3, 3, 8): torch's kernel would be 3 by 8 on 3 channels.
        is_mlx = min(shape[1:-1]) >= 3 and shape[-1] >= 2 * max(shape[1:-1]) and jax not in possible
        return (mlx,) if is_mlx else possible
    wide = tuple(axes for axes in possible if min(shape[axes[0]], shape[axes[1]]) >= max(kernels[axes]))
    return wide if len(wide) == 1 else possible
