"""What a Q-Former computes, written out slowly, and its tensors under transformers' names."""

import math

import torch
from torch import nn

from evcap.model.qformer import QFormer

BLIP2_NAMES = {
    "self_attention.out": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "self_attention": "attention.attention",
    "cross_attention.out": "crossattention.output.dense",
    "cross_attention.norm": "crossattention.output.LayerNorm",
    "cross_attention": "crossattention.attention",
    "query_feed_forward.up": "intermediate_query.dense",
    "query_feed_forward.down": "output_query.dense",
    "query_feed_forward.norm": "output_query.LayerNorm",
    "text_feed_forward.up": "intermediate.dense",
    "text_feed_forward.down": "output.dense",
    "text_feed_forward.norm": "output.LayerNorm",
}


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    """Weights large enough that every part of the network shows in its output, biases and norms included."""
    for name, parameter in module.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.normal_(centre, 0.3)
    return module


def to_blip2(qformer: QFormer) -> dict[str, torch.Tensor]:
    """State of a transformers Blip2QFormerModel that holds the same tensors."""
    state = {}
    for name, tensor in qformer.state_dict().items():
        if name.startswith("query_norm."):
            state[name.replace("query_norm", "layernorm")] = tensor
        elif name.startswith("layers."):
            _, layer, part = name.split(".", 2)
            old = next(k for k in BLIP2_NAMES if part.startswith(k + "."))
            state[f"encoder.layer.{layer}.{BLIP2_NAMES[old]}{part[len(old) :]}"] = tensor
    return state


def written_out(qformer: QFormer, context, mask=None, appended=None) -> torch.Tensor:
    """context (B,P,C), mask (B,P) or None, appended (B,G,W) or None -> (B,queries,W): one image after the other."""
    count = qformer.queries.shape[1]
    results = []
    for picture in range(len(context)):
        queries = qformer.queries[0]
        seen = context[picture] if mask is None else context[picture][mask[picture]]
        stream = _norm(qformer.query_norm, queries) if appended is None else torch.cat([queries, appended[picture]])
        for number, layer in enumerate(qformer.layers):
            stream = _attend(layer.self_attention, stream, stream)
            head, rest = stream[:count], stream[count:]
            if layer.cross_attention is not None:
                head = _attend(layer.cross_attention, head, seen)
            head = _feed(layer.query_feed_forward, head)
            if appended is not None and number < len(qformer.layers) - 1:
                rest = _feed(layer.text_feed_forward, rest)
            stream = torch.cat([head, rest])
        results.append(stream[:count])
    return torch.stack(results)


def _linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ module.weight.T + module.bias


def _norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    spread = x.var(-1, unbiased=False, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(spread + module.eps) * module.weight + module.bias


def _attend(module, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    query, key, value = _linear(module.query, x), _linear(module.key, context), _linear(module.value, context)
    size = query.shape[1] // module.heads
    mixed = torch.zeros_like(query)
    for head in range(module.heads):
        part = slice(head * size, (head + 1) * size)
        for position in range(len(x)):
            scores = torch.stack([query[position, part] @ k for k in key[:, part]]) / math.sqrt(size)
            weights = scores.exp() / scores.exp().sum()
            mixed[position, part] = sum(w * v for w, v in zip(weights, value[:, part], strict=True))
    return _norm(module.norm, x + _linear(module.out, mixed))


def _feed(module, x: torch.Tensor) -> torch.Tensor:
    inner = _linear(module.up, x)
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))  # GELU, exact
    return _norm(module.norm, x + _linear(module.down, inner))
