"""EVA-CLIP's text tower, whose features the paper's region heads read, as transformers' CLIP."""

from __future__ import annotations

from torch import nn

WIDTH, LAYERS, HEADS, CONTEXT, VOCABULARY, FEATURES = 768, 12, 12, 77, 49408, 1024  # of EVA01-CLIP-g-14


def build_text_tower(
    width: int = WIDTH,
    layers: int = LAYERS,
    heads: int = HEADS,
    context: int = CONTEXT,
    vocabulary: int = VOCABULARY,
    features: int = FEATURES,
    layer_norm_eps: float = 1e-5,
) -> nn.Module:
    """A CLIPTextModelWithProjection, untrained, in eval mode, not trainable: token ids (T,context) -> text_embeds (T,features).

    Every row ends in the vocabulary's last id, its end token, behind which nothing counts. Features are not normalised.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection  # slow import, for this tower only

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=features,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        hidden_act="gelu",  # where OpenAI's own CLIP has quick_gelu
        layer_norm_eps=layer_norm_eps,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )
    return CLIPTextModelWithProjection(config).eval().requires_grad_(False)
