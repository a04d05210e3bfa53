"""A network that reads digits of 8 x 8 pixels, and its forward pass in numpy.

Two convolutions of 3 x 3 (1 to 32 and 32 to 64 channels), each followed by a pooling of 2 x 2, and two linear layers
(256 to 100 and 100 to 10). 100 and 10 are not multiples of 8, so the edges cut some blocks.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..blocks import Array
from ..checkpoint import open_checkpoint
from . import DIGITS, DIGITS_HELD_OUT

__all__ = ["Tensors", "load_held_out", "load_network", "predict"]

Tensors: TypeAlias = dict[str, Array]


def load_network() -> Tensors:
    """Read the trained weights.

    Returns
    -------
    dict of str to ndarray
        conv1, conv2, fc1 and fc2, each with .weight and .bias. fc1.weight is bfloat16, the others are float32.

    Examples
    --------
    >>> load_network()["conv2.weight"].shape
    (64, 32, 3, 3)
    """
    checkpoint = open_checkpoint(DIGITS)
    return {tensor.name: checkpoint.read(tensor) for tensor in checkpoint.tensors}


def load_held_out() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images that the network never saw, and their labels.

    Returns
    -------
    images : ndarray of uint8, shape (899, 8, 8)
        Pixels of 0 to 16.
    labels : ndarray of uint8, shape (899,)

    Examples
    --------
    >>> images, labels = load_held_out()
    >>> f"{(predict(load_network(), images) == labels).mean():.2%}"
    '98.67%'
    """
    checkpoint = open_checkpoint(DIGITS_HELD_OUT)
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
    return checkpoint.read(tensors["images"]), checkpoint.read(tensors["labels"])


def predict(tensors: Tensors, images: Array) -> NDArray[np.int64]:
    """Read digits.

    Parameters
    ----------
    tensors : dict of str to ndarray
        As `load_network` returns them, pruned or not; any float dtype, computed in float32.
    images : ndarray, shape (B, 8, 8)
        Pixels of 0 to 16.

    Returns
    -------
    ndarray of int64, shape (B,)
        The digit of each image.
    """
    layers = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    x = images.astype(np.float32)[:, None] / 16
    for conv in ("conv1", "conv2"):
        windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
        x = np.tensordot(windows, layers[f"{conv}.weight"], ((1, 4, 5), (1, 2, 3))) + layers[f"{conv}.bias"]
        x = np.maximum(x, 0).transpose(0, 3, 1, 2)
        x = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max(axis=(3, 5))
    x = np.maximum(x.reshape(len(x), -1) @ layers["fc1.weight"].T + layers["fc1.bias"], 0)
    digits: NDArray[np.int64] = np.argmax(x @ layers["fc2.weight"].T + layers["fc2.bias"], axis=1)
    return digits
