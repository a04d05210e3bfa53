"""Which tensors are pruned: real names of Hugging Face, timm, torch, diffusers and OpenAI checkpoints."""

import numpy as np
import pytest

from transmask import InvalidArgumentError, InvalidTypeError, Pattern
from transmask.checkpoint import TensorInfo, select_tensors


def tensor(name, shape=(64, 64), dtype="float32"):
    return TensorInfo(name, shape, dtype, np.dtype(dtype) if dtype != "F4" else None)


def selected(info, **options):
    return select_tensors([info], Pattern(2, 4), **options)[0]


LINEAR_LAYERS = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.31.mlp.down_proj.weight",
    "lm_head.weight",
    "transformer.h.0.attn.c_attn.weight",
    "bert.encoder.layer.0.attention.output.dense.weight",
    "encoder.layers.0.self_attn.in_proj_weight",
    "blocks.0.attn.qkv.weight",
    "fc1.weight",
    "0.weight",
    "weight",
    "time_embedding.linear_1.weight",
    "down_blocks.0.resnets.0.time_emb_proj.weight",
    "time_embed.0.weight",
    "patch_embed.proj.weight",
    "transformer_blocks.0.norm1.linear.weight",
    "encoder.embedding_hidden_mapping_in.weight",
    "model.layers.0.mlp.shared_experts.gate_proj.weight",
    "upscale.weight",
    "input_blocks.1.0.emb_layers.1.weight",
    "label_emb.0.0.weight",
    "patch_embed.0.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "transformer.gates.weight",
    "model.layers.0.mlp.experts.0.w1.weight",
    "embeddings.patch_embeddings.projection.weight",
    "perceiver.to_latents.weight",
    "token_mixer.fc.weight",
    "queries.proj.weight",
    "latents.0.weight",
    "recipe.weight",
]

EMBEDDINGS = [
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.token_type_embeddings.weight",
    "tok_embeddings.weight",
    "token_embedding_table.weight",
    "positional_embedding",
    "vision_model.embeddings.class_embedding",
    "pos_embed",
    "shared.weight",
    "gpt_neox.embed_in.weight",
    "emb.weight",
    "blocks.0.attn.rel_pos_h",
    "model.decoder.embed_positions.weight",
    "params/wte/embedding",
    "positional_encoding",
    "encoder.pos_enc.weight",
    "decoder.position_encodings.weight",
    "pos_encoder.pe",
    "quantizer.codebook",
    "vq.codebooks.weight",
    "model.decoder.embed_tokens.0.weight",
    "embed_tokens.0.1.weight",
    "input_embeds_layer.weight",
    "input_embeds_layers.3.weight",
    "embedding_bag_collection.embedding_bags.user_id.weight",
    "quantizer.codebooks.0",
    "embed.W_E",
    "pos_embed.W_pos",
]

NORMS = [
    "model.layers.0.input_layernorm.weight",
    "bert.embeddings.LayerNorm.weight",
    "model.norm.weight",
    "transformer.ln_f.weight",
    "h.0.ln_1.weight",
    "layer1.0.bn1.weight",
    "blocks.0.norm1.weight",
    "q_norm.weight",
]

OTHERS = {
    "levit.stages.0.attention_biases": "bias",
    "model.layers.0.mlp.down_proj.biases": "bias",
    "encoder.layer.0.output.act_scaling_factor": "quantisation scale",
    "scaling_factor": "quantisation scale",
    "blocks.0.att.time_decay": "state or token",
    "blocks.0.att.time_maa_w1": "state or token",
    "blocks.0.att.r_k": "state or token",
    "freqs_cis": "buffer",
    "layers.0.rope.freqs_cis_real": "buffer",
    "decoder.sinusoid": "buffer",
    "pos_sinusoids": "buffer",
    "swin.layers.0.blocks.1.attn_mask": "buffer",
    "model.layers.0.mlp.gate.weight": "router",
    "model.layers.0.block_sparse_moe.gate.weight": "router",
    "model.layers.0.block_sparse_moe.router.layer.weight": "router",
    "encoder.block.1.layer.1.mlp.router.classifier.weight": "router",
    "model.layers.0.feed_forward.router.weight": "router",
    "base.layers.0.lora_A.weight": "LoRA adapter",
    "base.layers.0.q_proj.lora_B.default.weight": "LoRA adapter",
    "lora_unet_mid_block_to_q.lora_down.weight": "LoRA adapter",
    "unet.mid_block.attn1.to_q.lora.up.weight": "LoRA adapter",
    "layers.0.self_attn.q_proj.lora_a": "LoRA adapter",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "bias",
    "layers.0.attn.relative_position_bias_table": "bias",
    "model.layers.0.mlp.experts.gate_up_proj_bias": "bias",
    "model.layers.0.mlp.down_proj.weight_scale_inv": "quantisation scale",
    "model.layers.0.mlp.down_proj.scales": "quantisation scale",
    "backbone.layers.0.mixer.A_log": "state or token",
    "perceiver.latents": "state or token",
    "vit.cls_token": "state or token",
    "qformer.query_tokens": "state or token",
    "decoder.queries": "state or token",
}


@pytest.mark.parametrize("name", LINEAR_LAYERS)
def test_linear_layers_are_pruned(name):
    assert selected(tensor(name)).axes == (0, 1)
    assert selected(tensor(name)).reason == ""


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_are_not(name):
    assert selected(tensor(name)).axes is None
    assert selected(tensor(name)).reason == "embedding by its name"


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_not(name):
    assert selected(tensor(name)).reason == "normalisation by its name"


@pytest.mark.parametrize(("name", "kind"), OTHERS.items())
def test_biases_and_scales_are_not(name, kind):
    assert selected(tensor(name)).reason == f"{kind} by its name"


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (tensor("ids", (8, 8), "int64"), "int64 is not floating"),
        (tensor("mask", (8, 8), "bool"), "bool is not floating"),
        (tensor("freqs", (8, 8), "complex64"), "complex64 is not floating"),
        (tensor("packed", (8, 8), "F4"), "F4 is not floating"),
        (tensor("vector", (8,)), "1-d, not a matrix"),
        (tensor("scalar", ()), "0-d, not a matrix"),
        (tensor("small", (3, 8)), "3 x 8 is smaller than M = 4"),
        (tensor("conv1", (64, 3, 7, 7)), "64 x 3 is smaller than M = 4"),
        (tensor("depthwise", (64, 1, 9, 9)), "64 x 1 is smaller than M = 4"),
        (tensor("empty", (8, 8, 0)), "empty"),
    ],
)
def test_what_is_no_matrix_says_why(info, reason):
    assert selected(info).axes is None
    assert selected(info).reason == reason


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("linear", (4, 4), (0, 1)),
        ("conv1d", (8, 8, 3), (0, 1)),
        ("conv2d", (8, 8, 3, 3), (0, 1)),
        ("conv3d", (8, 8, 3, 3, 3), (0, 1)),
        ("model.layers.0.mlp.experts.gate_up_proj", (3, 8, 16), (1, 2)),
        ("layers.0.feed_forward.Expert.w1", (2, 8, 8), (1, 2)),
        ("layers.0.experts.w", (2, 3, 8, 16), (2, 3)),
        ("experts.0.conv.weight", (8, 8, 3, 3), (0, 1)),
        ("experts.0.conv.weight", (8, 8, 5), (0, 1)),
        ("moe.expert_1.conv.weight", (8, 8, 5), (0, 1)),
        ("experts.conv3d", (8, 8, 3, 3, 3), (0, 1)),
    ],
)
def test_the_axes_of_the_matrix(name, shape, axes):
    assert selected(tensor(name, shape)).axes == axes


def test_include_takes_embeddings_and_leaves_the_rest():
    chosen = select_tensors(
        [tensor("wte.weight"), tensor("fc.weight"), tensor("wte.vector", (8,))], Pattern(2, 4), include="^wte"
    )
    assert [(choice.axes, choice.reason) for choice in chosen] == [
        ((0, 1), ""),
        (None, "not included"),
        (None, "1-d, not a matrix"),
    ]


def test_exclude_wins_over_include():
    chosen = select_tensors(
        [tensor("a.fc.weight"), tensor("b.fc.weight")], Pattern(2, 4), include="fc", exclude=r"^a\."
    )
    assert [choice.reason for choice in chosen] == ["excluded", ""]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_broken_expression_is_refused(argument):
    with pytest.raises(InvalidArgumentError, match=rf"`{argument}` must be a regular expression, got '\(': missing \)"):
        selected(tensor("w"), **{argument: "("})
    with pytest.raises(InvalidTypeError, match=f"`{argument}` must be a regular expression, got 3"):
        selected(tensor("w"), **{argument: 3})
