"""Export BLIP-2's image tower and Q-Former from LAVIS, with what they answer to a few images.

Runs in an environment of its own, with Python below 3.12: salesforce-lavis pins a transformers that evcap cannot share.

    pip install torch torchvision salesforce-lavis safetensors
    python data/export_lavis.py --tower eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth --output blip2.safetensors

writes the tensors under LAVIS' names and, beside them, blip2-outputs.safetensors. Back in evcap's environment

    python data/convert_weights.py compare blip2.safetensors --outputs blip2-outputs.safetensors

builds evcap's tower and Q-Former from the first file and prints the largest differences to the second.
LAVIS' own code builds the modules; sizes are read from the files. Nothing of evcap is imported here.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from lavis.models.blip2_models.Qformer import BertConfig, BertLMHeadModel
from lavis.models.eva_vit import VisionTransformer
from safetensors.torch import save_file

HEAD_OF_TOWER, HEAD_OF_QFORMER = 88, 64  # width of an attention head in ViT-g and in BERT
PICTURES = 2


def tower_of(state: dict, depth: int) -> VisionTransformer:
    """LAVIS' ViT-g at the sizes of its checkpoint, without the blocks behind the last that BLIP-2 reads; float32."""
    width, patch = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    tower = VisionTransformer(
        img_size=side * patch,
        patch_size=patch,
        use_mean_pooling=False,
        embed_dim=width,
        depth=depth,
        num_heads=width // HEAD_OF_TOWER,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width + 1e-6,  # it is rounded down again
        qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )
    missing = tower.load_state_dict({k: v.float() for k, v in state.items()}, strict=False).missing_keys
    if missing:
        raise SystemExit(f"the tower's file lacks {', '.join(missing[:3])}")
    return tower.eval()


def qformer_of(state: dict, seen: int) -> BertLMHeadModel:
    """LAVIS' Q-Former without the parts that images do not pass, at the sizes of its checkpoint."""
    layer = "Qformer.bert.encoder.layer"
    width = state["query_tokens"].shape[-1]
    layers = len({k.split(".")[4] for k in state if k.startswith(layer)})
    crossed = sorted(int(k.split(".")[4]) for k in state if k.endswith("crossattention.self.key.weight"))
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_OF_QFORMER,
        intermediate_size=state[f"{layer}.0.intermediate_query.dense.bias"].shape[0],
    )
    config.encoder_width, config.add_cross_attention = seen, True
    config.cross_attention_freq = crossed[1] - crossed[0] if len(crossed) > 1 else layers
    config.query_length = state["query_tokens"].shape[1]
    qformer = BertLMHeadModel(config=config)
    qformer.cls = None
    qformer.bert.embeddings.word_embeddings = None
    qformer.bert.embeddings.position_embeddings = None
    for block in qformer.bert.encoder.layer:
        block.output = block.intermediate = None
    own = {k.removeprefix("Qformer."): v.float() for k, v in state.items() if k.startswith("Qformer.")}
    missing = [k for k in qformer.load_state_dict(own, strict=False).missing_keys if "position_ids" not in k]
    if missing:
        raise SystemExit(f"the Q-Former's file lacks {', '.join(missing[:3])}")
    return qformer.eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=Path, required=True, help="eva_vit_g.pth")
    parser.add_argument("--qformer", type=Path, required=True, help="blip2_pretrained*.pth, which also holds ln_vision")
    parser.add_argument("--depth", type=int, default=39, help="blocks of the tower that BLIP-2 reads")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    tower_state = torch.load(options.tower, map_location="cpu", weights_only=True)
    state = torch.load(options.qformer, map_location="cpu", weights_only=True)["model"]
    tower = tower_of(tower_state, options.depth)
    qformer = qformer_of(state, tower.num_features)
    norm = torch.nn.LayerNorm(tower.num_features)
    norm.load_state_dict({"weight": state["ln_vision.weight"].float(), "bias": state["ln_vision.bias"].float()})

    side = tower.patch_embed.img_size[0]
    pixels = torch.randn(PICTURES, 3, side, side, generator=torch.Generator().manual_seed(0))
    patches = norm(tower(pixels))
    queries = state["query_tokens"].float()
    output = qformer.bert(
        query_embeds=queries.expand(PICTURES, -1, -1),
        encoder_hidden_states=patches,
        encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long),
        return_dict=True,
    ).last_hidden_state

    tensors = {f"visual_encoder.{k}": v for k, v in tower.state_dict().items()}
    tensors |= {f"Qformer.{k}": v for k, v in qformer.state_dict().items() if not k.endswith("position_ids")}
    tensors |= {f"ln_vision.{k}": v for k, v in norm.state_dict().items()} | {"query_tokens": queries}
    save_file({k: v.contiguous() for k, v in tensors.items()}, options.output)
    outputs = {"pixels": pixels, "patch_tokens": patches, "query_output": output}
    beside = options.output.with_name(f"{options.output.stem}-outputs.safetensors")
    save_file({k: v.contiguous() for k, v in outputs.items()}, beside)
    print(f"wrote {options.output} ({len(tensors)} tensors) and {beside}")


if __name__ == "__main__":
    main()
