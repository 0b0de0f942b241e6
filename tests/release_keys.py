"""Names of tensors in checkpoints of the EVCap release (LAVIS names) -> names in `EVCap.state_dict()`."""

import re

import torch

LAYER_PARTS = {
    "attention.self.": "self_attention.",
    "attention.output.dense.": "self_attention.out.",
    "attention.output.LayerNorm.": "self_attention.norm.",
    "crossattention.self.": "cross_attention.",
    "crossattention.output.dense.": "cross_attention.out.",
    "crossattention.output.LayerNorm.": "cross_attention.norm.",
    "intermediate_query.dense.": "query_feed_forward.up.",
    "output_query.dense.": "query_feed_forward.down.",
    "output_query.LayerNorm.": "query_feed_forward.norm.",
    "intermediate.dense.": "guest_feed_forward.up.",
    "output.dense.": "guest_feed_forward.down.",
    "output.LayerNorm.": "guest_feed_forward.norm.",
}
OTHERS = {
    "query_tokens": "image_qformer.queries",
    "query_tokens_txt": "fusion.qformer.queries",
    "Qformer.bert.embeddings.LayerNorm.": "image_qformer.door.",
    "Qformer_txt.bert.embeddings.LayerNorm.": "fusion.embeddings.norm.",
    "Qformer_txt.bert.embeddings.word_embeddings.": "fusion.embeddings.word.",
    "Qformer_txt.bert.embeddings.position_embeddings.": "fusion.embeddings.position.",
    "llama_proj.": "projection.",
    "ln_vision.": "backbone.network.post_layernorm.",
    "visual_encoder.cls_token": "backbone.network.embeddings.class_embedding",
    "visual_encoder.pos_embed": "backbone.network.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.": "backbone.network.embeddings.patch_embedding.",
}
BLOCK_PARTS = {
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.projection.",
    "mlp.": "mlp.",
}


def from_release(release: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The release's tensors under this package's names; KeyError for a name that it does not know.

    The tower's query and value biases become one bias whose key part is zero. The feed-forward that the fusion's last layer
    holds for the guests is left out: nobody reads its output.
    """
    ours = {}
    for key, tensor in release.items():
        if key.endswith("attn.q_bias"):
            value_bias = release[key.replace("q_bias", "v_bias")]
            bias = torch.cat([tensor, torch.zeros_like(tensor), value_bias])
            ours[_renamed(key.replace("q_bias", "qkv.bias"))] = bias
        elif not key.endswith("attn.v_bias"):
            ours[_renamed(key)] = tensor
    last = max(int(n) for key in ours for n in re.findall(r"^fusion\.qformer\.layers\.(\d+)\.", key))
    return {k: v for k, v in ours.items() if not k.startswith(f"fusion.qformer.layers.{last}.guest_feed_forward.")}


def _renamed(key: str) -> str:
    if layer := re.fullmatch(r"(Qformer|Qformer_txt)\.bert\.encoder\.layer\.(\d+)\.(.+)", key):
        part = "image_qformer" if layer[1] == "Qformer" else "fusion.qformer"
        return f"{part}.layers.{layer[2]}.{_with_prefix(LAYER_PARTS, layer[3])}"
    if block := re.fullmatch(r"visual_encoder\.blocks\.(\d+)\.(.+)", key):
        return f"backbone.network.encoder.layers.{block[1]}.{_with_prefix(BLOCK_PARTS, block[2])}"
    return OTHERS.get(key) or _with_prefix(OTHERS, key)


def _with_prefix(names: dict[str, str], key: str) -> str:
    for old, new in names.items():
        if old.endswith(".") and key.startswith(old):
            return new + key[len(old) :]
    raise KeyError(key)
