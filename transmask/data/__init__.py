"""Data that ships with the package: a small trained network and the images it never saw.

``examples/train_demo_checkpoint.py`` writes both files. Their metadata gives the seed, the split, the source and the
licence of the images, and the accuracy measured when they were made.
"""

from pathlib import Path

__all__ = ["DIGITS", "DIGITS_HELD_OUT"]

DIGITS = Path(__file__).with_name("digits.safetensors")
"""The network of `transmask.data.digits`, in float32 and bfloat16."""

DIGITS_HELD_OUT = Path(__file__).with_name("digits_held_out.safetensors")
"""899 images of 8 x 8 pixels of 0 to 16, their labels, and their rows in ``sklearn.datasets.load_digits``."""
