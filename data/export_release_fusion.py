"""Export the name fusion of the public EVCap release, which is drawn at random and in no checkpoint of it.

The release builds its fusion anew at every start, right after seeding with 42, and never trains or saves it: a checkpoint of it
(000.pt) works only with these very numbers. Runs in the release's own environment (environment.yaml there: torch 2.1.0,
transformers 4.28.0, timm 0.6.13; other versions may draw other numbers), with its code at hand:

    python data/export_release_fusion.py --release EVCap --output fusion.safetensors

Modules are built in the release's order, for each draws from the same stream. Nothing of evcap is imported here.
"""

import argparse
import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

SEED = 42
WIDTH = 1408


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True, help="folder of the release's code (with models/)")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    sys.path.insert(0, str(options.release))
    from models.blip2 import Blip2Base
    from models.eva_vit import VisionTransformer

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    # the tower's numbers are replaced by a checkpoint's; it is built for the draws that it takes from the stream
    VisionTransformer(
        img_size=224,
        patch_size=14,
        use_mean_pooling=False,
        embed_dim=WIDTH,
        depth=39,
        num_heads=WIDTH // 88,
        mlp_ratio=4.3637,
        qkv_bias=True,
        drop_path_rate=0,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_checkpoint=False,
    )
    image_qformer, _ = Blip2Base.init_Qformer(32, WIDTH)
    tokenizer = Blip2Base.init_tokenizer()
    fusion, _ = Blip2Base.init_Qformer_txt(8, image_qformer.config.hidden_size)
    fusion.resize_token_embeddings(len(tokenizer))
    fusion.cls = None
    tensors = {f"Qformer_txt.{k}": v.contiguous() for k, v in fusion.state_dict().items() if not k.endswith("position_ids")}
    save_file(tensors, options.output)
    print(f"wrote {options.output}: {len(tensors)} tensors, drawn with seed {SEED} by torch {torch.__version__}")


if __name__ == "__main__":
    main()
