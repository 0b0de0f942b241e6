"""Check and convert the weights of the large presets. Nothing that a file holds is executed.

    python data/convert_weights.py check eva_vit_g.pth blip2_pretrained_flant5xxl.pth
    python data/convert_weights.py blip2 SOURCE... --output FILE.safetensors     (smaller and quicker to open than .pth)
    python data/convert_weights.py blip2 SOURCE... --output FOLDER               (transformers' layout)
    python data/convert_weights.py release 000.pt fusion.safetensors --output trained.safetensors
    python data/convert_weights.py memory ext_memory_lvis.pkl --output FOLDER
    python data/convert_weights.py dynrefer CHECKPOINT eva_clip_psz14.pt BLIP2 --output regions.safetensors
    python data/convert_weights.py start --bert google-bert/bert-base-uncased --output start.safetensors
    python data/convert_weights.py compare blip2.safetensors --outputs blip2-outputs.safetensors

SOURCE: a folder of transformers or its hub name, a LAVIS file, or a file that this script wrote. Of several, the first that
holds a tensor gives it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from evcap.cli.console import command
from evcap.config import Preset, assets_folder, load_preset
from evcap.errors import EvcapError
from evcap.files import write_text
from evcap.memory.memory import VisualNameMemory
from evcap.model.build import skeleton
from evcap.model.evcap import QueryEncoder, trained_parts
from evcap.model.fingerprint import encoder_fingerprint
from evcap.model.towers import build_backbone
from evcap.regions.describe import check_regions
from evcap.regions.model import RegionModel
from evcap.training.initial import first_tensors
from evcap.weights.blip2 import Placed, frozen_tensors, load_blip2, read_blip2, to_transformers
from evcap.weights.dynrefer import PROJECTIONS, read_dynrefer
from evcap.weights.release import read_release, read_release_memory
from evcap.weights.shipped import read_trained
from evcap.weights.wheels import read_safetensors, write_safetensors

app = typer.Typer(help=__doc__.splitlines()[0], no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)

SOURCE = "Folder of transformers, its hub name, or a file; the first that has a tensor counts."
Sources = Annotated[list[str], typer.Argument(metavar="SOURCE...", help=SOURCE)]
Output = Annotated[Path, typer.Option(help="File or folder to write.")]
PresetName = Annotated[str, typer.Option("--preset", help="Preset whose sizes the tensors must have.")]
PAPER = "evcap-vicuna-13b"


@app.command("check")
@command
def check(sources: Sources, preset: PresetName = PAPER) -> None:
    """Show which tensors of BLIP-2 find their place, and what is left out and why."""
    report(read_blip2(sources, frozen_tensors(skeleton(load_preset(preset)))))


@app.command("blip2")
@command
def blip2(sources: Sources, output: Output, preset: PresetName = PAPER) -> None:
    """Write BLIP-2's tower, Q-Former and query tokens as one safetensors file, or as a folder of transformers."""
    settings = load_preset(preset)
    placed = read_blip2(sources, frozen_tensors(skeleton(settings)))
    if output.suffix == ".safetensors":
        write_safetensors(placed.tensors, output)
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_safetensors(to_transformers(placed.tensors), output / "model.safetensors", {"format": "pt"})
        write_text(output / "config.json", json.dumps(transformers_config(settings), indent=1) + "\n")
    report(placed)
    print(f"wrote {output}")


@app.command("release")
@command
def release(
    sources: Annotated[list[str], typer.Argument(metavar="FILE...", help="000.pt, and the file with the drawn fusion.")],
    output: Output,
    preset: PresetName = PAPER,
) -> None:
    """Turn a checkpoint of the EVCap release, with the fusion it draws at random, into trained.safetensors."""
    placed = read_release(sources, trained_parts(skeleton(load_preset(preset))))
    write_safetensors(placed.tensors, output)
    report(placed)
    print(f"wrote {output}")


@app.command("memory")
@command
def memory(
    file: Annotated[Path, typer.Argument(help="The release's memory, ext_memory_lvis.pkl.")],
    output: Output,
    preset: PresetName = PAPER,
) -> None:
    """Turn the EVCap release's pickled memory into a folder for a preset, whose encoder it is taken to be made by."""
    settings = load_preset(preset)
    keys, names = read_release_memory(file)
    model = skeleton(settings)
    load_blip2(model, settings.blip2, torch.float32)
    trained = assets_folder(preset, settings) / "trained.safetensors"
    if settings.assets and trained.exists():  # the release trains the query tokens, too
        model.image_qformer.queries = torch.nn.Parameter(read_trained(trained)["image_qformer.queries"].float())
    images = [f"{file.name} {number}" for number in range(len(names))]
    made = VisualNameMemory.build(keys, names, ["EVCap release"] * len(names), images, encoder_fingerprint(model))
    made.save(output)
    print(f"{output}: {len(made)} entries, {len(made.counts())} names")


@app.command("dynrefer")
@command
def dynrefer(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="The release's checkpoint, EVA-CLIP's text tower, BLIP-2 for the query tokens."),
    ],
    output: Output,
    preset: PresetName = "dynrefer-flan-t5-xl",
    start: Annotated[
        bool, typer.Option("--start", help="Fusion, heads and projection are drawn: no checkpoint of the release is needed.")
    ] = False,
) -> None:
    """Turn a checkpoint of the DynRefer release, or what training begins with, into regions.safetensors."""
    settings = load_preset(preset)
    check_regions(settings)
    torch.manual_seed(0)
    with torch.device("meta"):
        spine = QueryEncoder(settings, build_backbone(settings.vision))
    drawn = RegionModel(spine, None).state_dict()
    wanted = {name: tensor for name, tensor in drawn.items() if not start or name.startswith(("text_tower.", "image_qformer."))}
    placed = read_dynrefer(sources, wanted, PROJECTIONS[0 if settings.regions.control_vector else 1])
    write_safetensors(drawn | placed.tensors, output)
    report(placed)
    print(f"wrote {output}")


@app.command("start")
@command
def start(
    output: Output,
    bert: Annotated[str | None, typer.Option(help="BERT-base uncased, or blip2_pretrained.pth; none = all drawn.")] = None,
    preset: PresetName = PAPER,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """Write the tensors that training begins with."""
    tensors = first_tensors(load_preset(preset), bert, seed)
    write_safetensors(tensors, output)
    print(f"wrote {output}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")


@app.command("compare")
@command
def compare(
    sources: Sources,
    outputs: Annotated[Path, typer.Option(help="File that data/export_lavis.py wrote beside the tensors.")],
    preset: PresetName = PAPER,
    tolerance: Annotated[float, typer.Option(help="Largest difference, as a share of the largest value.")] = 1e-4,
) -> None:
    """Compare evcap's tower and Q-Former with what LAVIS itself answered to the same pixels."""
    settings, recorded = load_preset(preset), read_safetensors(outputs)
    model = skeleton(settings)
    load_blip2(model, sources, torch.float32)
    with torch.inference_mode():
        patches = model.backbone(recorded["pixels"])
        found = {"patch_tokens": patches, "query_output": model.query_features(patches)}
    worst = {n: float((t - recorded[n]).abs().max() / recorded[n].abs().max()) for n, t in found.items()}
    print(json.dumps(worst))
    if max(worst.values()) > tolerance:
        raise EvcapError(f"evcap and LAVIS differ by more than {tolerance}")


def report(placed: Placed) -> None:
    """One table: tensors and numbers of each part, then what was left out, by reason."""
    table = Table("part", "tensors", "numbers")
    parts = defaultdict(list)
    for name, tensor in placed.tensors.items():
        parts[name.split(".")[0]].append(tensor.numel())
    for part, counts in parts.items():
        table.add_row(part, str(len(counts)), f"{sum(counts):,}")
    reasons = defaultdict(list)
    for name, reason in placed.left_out.items():
        reasons[reason].append(name)
    for reason, names in reasons.items():
        table.add_row(f"left out: {reason}", str(len(names)), f"e.g. {names[0]}")
    Console(width=None if Console().is_terminal else 160).print(table)


def transformers_config(preset: Preset) -> dict:
    """config.json of a transformers folder with a preset's sizes; it names no language model, the folder holds none."""
    from transformers import Blip2Config

    vision, qformer = preset.vision, preset.image_qformer
    config = Blip2Config(
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": vision.intermediate,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        qformer_config={
            "hidden_size": qformer.width,
            "num_hidden_layers": qformer.layers,
            "num_attention_heads": qformer.heads,
            "intermediate_size": qformer.intermediate,
            "cross_attention_frequency": qformer.cross_attention_every,
            "encoder_hidden_size": vision.width,
        },
        num_query_tokens=preset.image_queries,
    )
    return config.to_diff_dict()


if __name__ == "__main__":
    app()
