"""The model and the tokenizer of a folder: no code from it is run, nothing comes from the network or from a pickle."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..._imports import import_whole
from ...errors import CheckpointError, InvalidArgumentError, MissingDependencyError

__all__ = ["load_model", "load_tokenizer", "longest_text", "run"]


def load_model(folder: Path) -> nn.Module:
    """Load the model that ``config.json`` names, in the dtype in which it is stored.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    transformers.PreTrainedModel
        On the CPU.

    Raises
    ------
    MissingDependencyError
        If transformers is not installed.
    InvalidArgumentError
        If transformers does not know the model, it needs code of its own, its weights are quantised, it does not read
        text, or a weight is missing.
    CheckpointError
        If transformers cannot load it.
    """
    transformers = _transformers()
    config = _loaded(folder, transformers.AutoConfig)
    name = next(iter(config.architectures or ()), None)
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise InvalidArgumentError(
            f"`model` must name an architecture that transformers {transformers.__version__} knows, got {name!r} in "
            f"{str(folder / 'config.json')!r}."
        )
    if getattr(config, "quantization_config", None):
        raise InvalidArgumentError(
            f"`model` must hold floating-point weights to be refitted, got quantised ones in {str(folder)!r}. "
            "Take the model before it was quantised, or prune it with `transmask prune`."
        )
    model, found = _loaded(folder, kind, dtype="auto", use_safetensors=True, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise InvalidArgumentError(
            f"`model` must hold every weight of {name}, got {str(folder)!r} without {missing[0]!r}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}."
        )
    if model.main_input_name != "input_ids":
        raise InvalidArgumentError(
            f"`model` must read text, got {name}, which reads {model.main_input_name!r}. "
            "Call transmask.torch.reconstruct in Python."
        )
    return model.eval()  # type: ignore[no-any-return]


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a folder.

    Raises
    ------
    CheckpointError
        If there is none that transformers can load.
    """
    return _loaded(folder, _transformers().AutoTokenizer)


def longest_text(model: Any) -> int | None:
    """Return the number of tokens that a model of transformers has positions for; None if it does not say."""
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        if isinstance(value := getattr(model.config, name, None), int) and value > 0:
            return value
    return None


def run(model: Any, batch: dict[str, Tensor]) -> None:
    """Run a model of transformers on a batch of texts; nothing is cached, and a decoder reads what the encoder does."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items()}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
        inputs["decoder_attention_mask"] = inputs["attention_mask"]
    if "use_cache" in inspect.signature(model.forward).parameters:
        model(**inputs, use_cache=False)
    else:
        model(**inputs)


def _transformers() -> Any:
    try:
        return import_whole("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingDependencyError(
            'model folders need transformers. Run: pip install "transmask[transformers]"'
        ) from None


def _loaded(folder: Path, kind: Any, **options: Any) -> Any:
    """Call ``from_pretrained``, which raises whatever it meets, without its progress bar."""
    messages = _transformers().utils.logging
    bar = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{str(folder)!r} must hold what transformers can load as {kind.__name__}: {reason}"
        ) from error
    finally:
        if bar:
            messages.enable_progress_bar()
