"""What is no weight, recognised by name: embeddings, norms, biases, scales, routers, adapters, buffers and states.

Only the last parts of a name count, the parameter's own and those of the modules that hold it closely:
``model.embed_tokens.weight`` is an embedding, ``patch_embed.proj.weight`` a convolution. A number that stands before
the parameter is looked through: ``embed_tokens.0.weight`` is one of several embeddings. Where the numbers are those of
a ``Sequential``, they count layers: ``time_embed.0.weight`` is linear.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["kind_by_name"]

# What is matched against a part of a lower-case name, and how many of its last parts are looked at. Hugging Face has
# embed_tokens, word_embeddings, wte, wpe, shared (T5), input_embeds_layer (Bark) and relative_attention_bias; torchrec
# embedding_bags.TABLE.weight; timm pos_embed and relative_position_bias_table; TransformerLens W_E and W_pos; others
# emb, embedding_table, pe, positional_encoding and codebook. LeViT has attention_biases, MLX biases. Mamba has A_log,
# Perceiver latents, vision transformers cls_token, RWKV time_mix_k, time_decay and r_k. Swin keeps attn_mask, Llama
# freqs_cis. Projections such as time_emb_proj are linear layers.
NAMED = (
    ("embedding", 2, r"(\w*_)?emb(ed)?s?(_(tokens?\w*|positions?|in|out|table))?|\w*embeddings?(_table)?"),
    ("embedding", 2, r"w[tp]e|shared|(\w*_)?rel(ative)?_pos(_\w+)?|(\w*_)?embeds_layers?|w_(e|pos)"),
    ("embedding", 2, r"(\w*_)?(pos(itional)?|position)_enc(oding)?s?|pe|codebooks?"),
    ("embedding", 3, r"(\w*_)?embedding_bags?"),
    ("normalisation", 2, r"\w*norm\d*|norm\d*_\w+|(\w+_)?(ln|bn|gn)\d*|ln_\w+"),
    ("bias", 2, r"\w*bias(es)?(_table)?"),
    ("quantisation scale", 1, r"(\w*_)?scales?(_inv)?|(\w*_)?scaling_factors?|scale_weight|scb"),
    ("quantisation scale", 1, r"(\w*_)?(zero_points?|qzeros|absmax)"),
    ("router", 2, r"gate"),
    ("router", 3, r"(\w*_)?router"),
    ("LoRA adapter", 3, r"lora_(embedding_)?[ab]|lora_(up|down|mid)|(\w+_)?lora"),
    ("state or token", 1, r"a_log|(\w*_)?(latents?|queries|tokens?)|time_\w+|r_k"),
    (
        "buffer",
        1,
        r"(\w*_)?freqs?(_\w+)?|(\w*_)?sinusoid\w*|(attn|attention|(\w*_)?causal)_mask|(cos|sin)_cached|cos_sin_cache|alibi",
    ),
)
SEQUENTIAL = re.compile(r"(time(step)?|label|class|patch|cond\w*|context|add|vector|pos|t|y)_emb(ed)?|shared|pe")


def kind_by_name(name: str) -> str:
    """Say which kind of parameter that is not pruned a name stands for; empty if none.

    Parameters
    ----------
    name : str
        Its parts are separated by full stops or slashes.

    Returns
    -------
    str

    Examples
    --------
    >>> kind_by_name("decoder.embed_tokens.3.weight"), kind_by_name("layers.3.weight")
    ('embedding', '')
    """
    parts = re.split(r"[./]", name.lower())
    *holders, parameter = parts
    while holders and holders[-1].isdecimal():
        holders.pop()
    if len(holders) + 1 < len(parts) and holders and SEQUENTIAL.fullmatch(holders[-1]):
        holders = []
    rows = [_row(part, place) for place, part in enumerate((parameter, *reversed(holders[-2:])), start=1)]
    return NAMED[min(rows)][0] if min(rows) < len(NAMED) else ""


@lru_cache(4096)  # the same few parts come again in every layer
def _row(part: str, place: int) -> int:
    """Return the first row that a part matches, counted from the end of the name; past the last if there is none."""
    return next(
        (row for row, (_, depth, regex) in enumerate(NAMED) if place <= depth and re.fullmatch(regex, part)), len(NAMED)
    )
