"""Tensors with random numbers under LAVIS' names, as its files hold them, and its image tower written out."""

import dataclasses
from pathlib import Path

import torch
import yaml
from tiny import tiny_llm, tiny_tokenizer
from torch import nn

from evcap.config import Preset, QFormerConfig, load_preset


def small_paper_preset(**changes) -> Preset:
    """evcap-vicuna-13b with the paper's structure and small sizes, for the tiny language model."""
    paper = load_preset("evcap-vicuna-13b")
    qformer = QFormerConfig(width=24, layers=4, heads=2, intermediate=40, cross_attention_every=2)
    return dataclasses.replace(
        paper,
        vision=dataclasses.replace(
            paper.vision, image_size=28, width=32, tokens=5, patch_size=14, depth=3, heads=2, intermediate=48
        ),
        image_qformer=qformer,
        name_qformer=qformer,
        image_queries=6,
        name_queries=3,
        language=dataclasses.replace(paper.language, hidden=32),
        **changes,
    )


def write_paper_files(folder: Path, assets: str) -> Path:
    """LAVIS' two files, a language model in llm/, and the preset preset.yaml that names them; returns that file."""
    preset = small_paper_preset()
    sources = [folder / "eva_vit_g.pth", folder / "blip2_pretrained.pth"]
    torch.save(lavis_tower(preset), sources[0])
    torch.save({"model": lavis_qformer(preset)}, sources[1])
    tiny_llm().save_pretrained(folder / "llm")
    tiny_tokenizer().save_pretrained(folder / "llm")
    language = dataclasses.replace(preset.language, kind=str(folder / "llm"), precision="float32")
    preset = dataclasses.replace(preset, name="small", blip2=list(map(str, sources)), language=language, assets=assets)
    (folder / "preset.yaml").write_text(yaml.safe_dump(dataclasses.asdict(preset)))
    return folder / "preset.yaml"


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Random tensors, large enough that each shows in the output; norm weights around 1."""
    make = torch.Generator().manual_seed(seed)
    norms = ("norm1.weight", "norm2.weight", "LayerNorm.weight", "ln_vision.weight")
    return {k: torch.randn(s, generator=make) * 0.2 + (1.0 if k.endswith(norms) else 0.0) for k, s in shapes.items()}


def tower_shapes(width: int, depth: int, intermediate: int, image: int, patch: int) -> dict[str, tuple[int, ...]]:
    """eva_vit_g.pth: the tower alone, without a first part in its names."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (image // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.q_bias": (width,),
        "attn.v_bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (intermediate, width),
        "mlp.fc1.bias": (intermediate,),
        "mlp.fc2.weight": (width, intermediate),
        "mlp.fc2.bias": (width,),
    }
    return shapes | {f"blocks.{n}.{k}": s for n in range(depth) for k, s in block.items()}


def bert_shapes(prefix: str, width: int, layers: int, intermediate: int, every: int, seen: int) -> dict[str, tuple[int, ...]]:
    """The layers of LAVIS' Q-Former with both of its branches. seen: width of what cross-attention looks at."""

    def linear(name: str, out: int, into: int) -> dict:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    def norm(name: str) -> dict:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    shapes = {}
    for n in range(layers):
        layer = {}
        for kind, from_width in [("attention", width)] + [("crossattention", seen)] * (n % every == 0):
            layer |= linear(f"{kind}.self.query", width, width) | linear(f"{kind}.self.key", width, from_width)
            layer |= linear(f"{kind}.self.value", width, from_width)
            layer |= linear(f"{kind}.output.dense", width, width) | norm(f"{kind}.output.LayerNorm")
        for side in ("", "_query"):
            layer |= linear(f"intermediate{side}.dense", intermediate, width)
            layer |= linear(f"output{side}.dense", width, intermediate) | norm(f"output{side}.LayerNorm")
        shapes |= {f"{prefix}.bert.encoder.layer.{n}.{k}": s for k, s in layer.items()}
    return shapes | {
        f"{prefix}.bert.embeddings.LayerNorm.weight": (width,),
        f"{prefix}.bert.embeddings.LayerNorm.bias": (width,),
    }


def embedding_shapes(prefix: str, vocabulary: int, width: int) -> dict[str, tuple[int, ...]]:
    start = f"{prefix}.bert.embeddings"
    return {f"{start}.word_embeddings.weight": (vocabulary, width), f"{start}.position_embeddings.weight": (512, width)}


def lavis_tower(preset: Preset, blocks_more: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """What eva_vit_g.pth holds at a preset's sizes, with a block more than BLIP-2 reads, as there."""
    v = preset.vision
    return drawn(tower_shapes(v.width, v.depth + blocks_more, v.intermediate, v.image_size, v.patch_size), seed)


def lavis_qformer(preset: Preset, seed: int = 1) -> dict[str, torch.Tensor]:
    """What blip2_pretrained.pth holds at a preset's sizes: both branches, text embeddings, heads."""
    q, vision = preset.image_qformer, preset.vision.width
    shapes = bert_shapes("Qformer", q.width, q.layers, q.intermediate, q.cross_attention_every, vision)
    shapes |= embedding_shapes("Qformer", 30523, q.width)
    shapes |= {"query_tokens": (1, preset.image_queries, q.width), "ln_vision.weight": (vision,), "ln_vision.bias": (vision,)}
    shapes |= {"Qformer.cls.predictions.bias": (30523,), "itm_head.weight": (2, q.width), "t5_proj.bias": (16,)}
    return drawn(shapes, seed)


def release_tensors(preset: Preset, seed: int = 2) -> dict[str, torch.Tensor]:
    """Everything that a model of the EVCap release holds beside BLIP-2 and the language model."""
    q, d = preset.name_qformer, preset.language.hidden
    shapes = bert_shapes("Qformer_txt", q.width, q.layers, q.intermediate, q.cross_attention_every, q.width)
    shapes |= embedding_shapes("Qformer_txt", preset.vocab_size, q.width)
    shapes |= {"query_tokens_txt": (1, preset.name_queries, q.width), "query_tokens": (1, preset.image_queries, q.width)}
    return drawn(shapes | {"llama_proj.weight": (d, q.width), "llama_proj.bias": (d,)}, seed)


@torch.no_grad()
def tower_written_out(state: dict[str, torch.Tensor], pixels: torch.Tensor, depth: int, heads: int) -> torch.Tensor:
    """EVA's ViT block by block (pre-norm, biases of queries and values only); pixels (B,3,S,S) -> (B,P,C), before ln_vision."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    tokens = nn.functional.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    tokens = tokens.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(pixels), -1, -1), tokens], dim=1) + state["pos_embed"]
    width = x.shape[-1]
    for n in range(depth):
        block = {k.removeprefix(f"blocks.{n}."): v for k, v in state.items() if k.startswith(f"blocks.{n}.")}
        h = nn.functional.layer_norm(x, (width,), block["norm1.weight"], block["norm1.bias"], 1e-6)
        q, k, v = (h @ w.T for w in block["attn.qkv.weight"].chunk(3))
        q, v = q + block["attn.q_bias"], v + block["attn.v_bias"]
        parts = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
        weights = (parts[0] @ parts[1].transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        x = x + nn.functional.linear(
            (weights @ parts[2]).transpose(1, 2).flatten(2), block["attn.proj.weight"], block["attn.proj.bias"]
        )
        h = nn.functional.layer_norm(x, (width,), block["norm2.weight"], block["norm2.bias"], 1e-6)
        h = nn.functional.gelu(nn.functional.linear(h, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + nn.functional.linear(h, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return x
