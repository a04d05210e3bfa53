"""Calibration texts out of a file, and the batches that a tokenizer makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import CheckpointError, InvalidArgumentError

__all__ = ["read_texts", "tokenize"]


def read_texts(path: Path, limit: int) -> list[str]:
    """Read the first texts of a file in UTF-8; those of nothing but white space do not count.

    Parameters
    ----------
    path : Path
        A ``.jsonl`` file, of which each line is an object with a string "text"; or any other, a text a line.
    limit : int
        How many at most.

    Returns
    -------
    list of str
        At least one.

    Raises
    ------
    InvalidArgumentError
        If a line has no text, or there is none in the file.
    CheckpointError
        If the file is not in UTF-8.
    OSError
        If it cannot be read.
    """
    texts: list[str] = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for text in _texts_in(path, file):
                if len(texts) == limit:
                    break
                if text.strip():
                    texts.append(text)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{str(path)!r} must be text in UTF-8: {error.reason} at byte {error.start}.") from None
    if not texts:
        raise InvalidArgumentError(f"`calibration` must hold at least one text, got none in {str(path)!r}.")
    return texts


def _texts_in(path: Path, lines: Iterator[str]) -> Iterator[str]:
    """Yield the text of each line."""
    for number, line in enumerate(lines, 1):
        if path.suffix != ".jsonl":
            yield line.rstrip("\n")
        elif line.strip():
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                fields = None
            if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
                raise InvalidArgumentError(
                    f"`calibration` must hold an object with a string 'text' in every line, got {line[:40].strip()!r} "
                    f"in line {number} of {str(path)!r}."
                )
            yield fields["text"]


def tokenize(tokenizer: Any, texts: Sequence[str], *, length: int, batch_size: int) -> list[dict[str, Tensor]]:
    """Cut texts into tokens and fill each batch up to its longest text.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Left as it is, but for a padding token if it has none.
    texts : sequence of str
    length : int
        The tokens that are left of a longer text, its first.
    batch_size : int
        Texts in a batch; the last may have fewer.

    Returns
    -------
    list of dict of str to torch.Tensor
        What the tokenizer names, of shape (texts, tokens); always an ``attention_mask``, 0 on padding.

    Raises
    ------
    InvalidArgumentError
        If the texts give no token.
    """
    tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:  # which one does not matter: the mask leaves it out
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    cut = [tokenizer(text, truncation=True, max_length=length) for text in texts]
    full = [tokens for tokens in cut if len(tokens["input_ids"])]
    if not full:
        raise InvalidArgumentError(
            f"`calibration` must hold texts with a token, got none in {len(texts)}. "
            "Is the tokenizer in the folder of the model?"
        )
    return [
        dict(tokenizer.pad(full[start : start + batch_size], return_attention_mask=True, return_tensors="pt"))
        for start in range(0, len(full), batch_size)
    ]
