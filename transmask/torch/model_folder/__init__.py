"""Reconstruct the model in a folder as Hugging Face writes it, with text as calibration data.

texts.py        calibration texts out of a file, and the batches that a tokenizer makes of them
loading.py      the model and the tokenizer of a folder: no code from it, nothing from the network
changes.py      the tensors of the folder that a reconstruction changes
reconstruct.py  the one call: load, reconstruct, and write a folder in which nothing else is different
"""

from .reconstruct import reconstruct_folder

__all__ = ["reconstruct_folder"]
