"""A world of coloured squares small enough to train in it: data folder, preset, first tensors, memory; and the recipes."""

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from cli_tools import run_recipe
from forks import Fork
from PIL import Image
from places import REPOSITORY
from tiny import tiny_llm, tiny_tokenizer

import evcap.runtime
from evcap.captioner import Captioner
from evcap.config import PRESET_FOLDER, load_preset
from evcap.memory.memory import VisualNameMemory
from evcap.model.build import build_model
from evcap.model.evcap import trained_parts
from evcap.weights.wheels import write_safetensors

COLOURS = {"red": (200, 30, 30), "green": (20, 180, 60), "blue": (30, 40, 210), "grey": (128, 128, 128)}
COMMON = {
    "sets": ["squares"],
    "epochs": 3,
    "batch": 2,
    "accumulate": 2,
    "learning_rate": 1e-3,
    "warmup": 2,
    "text_slots": 60,
    "validate": 6,
    "checkpoint_minutes": 0.0,
    "compile": False,
    "seed": 3,
}
REGIONS = {name: value for name, value in COMMON.items() if name not in ("sets", "text_slots")}
REGION_FILES = {"file": "squares/regions_train.json", "images": "squares/images"}
RECIPES = {
    "train_regions": {
        "files": [REGION_FILES, REGION_FILES | {"classes": True}],
        "validation": [REGION_FILES | {"file": "squares/regions_val.json"}],
        "collages": 0.4,
        "in_classes": 2,
        "caption_slots": 40,
        "max_tokens": 20,
        "substitutes": "names.txt",
        "noise": 0.5,
        "wrong_names": 0.2,
    },
    "pretrain": {"extra_texts": 4},
    "train": {"train_lora": True, "rename": 0.5, "drop_names": 0.2, "substitutes": "names.txt"},
}
SAVED_ONCE = {"checkpoint_minutes": 60.0}  # at its end; else after every step, so that a kill falls between two
STEPS = 12  # 16 images, 4 a step, 3 epochs


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="evcap-tiny-")


@functools.cache
def world() -> Path:
    """The folder with data/, preset.yaml, start.safetensors and memory/, made once per test session."""
    folder = Path(_scratch().name)
    _write_data(folder / "data" / "squares")
    (folder / "data" / "names.txt").write_text("\n".join(["kite", "teapot", "wolf", "stop sign"]))
    _write_regions(folder / "data" / "squares")
    _write_preset(folder)
    torch.manual_seed(0)
    model = build_model(load_preset(folder / "preset.yaml"), None)
    with torch.no_grad():
        model.image_qformer.queries.normal_()  # fresh queries are nearly alike; these retrieve different names
    write_safetensors(trained_parts(model), folder / "start.safetensors")
    captioner = Captioner(model)
    pictures = sorted((folder / "data" / "squares" / "images").glob("1*.png"))
    names = ["square", *COLOURS, "image"][: len(pictures)]
    pictures = pictures[: len(names)]
    sources, images = ["test"] * len(names), [p.name for p in pictures]
    keys = captioner.keys(pictures)
    VisualNameMemory.build(keys, names, sources, images, captioner.encoder_fingerprint).save(folder / "memory")
    return folder


def _write_data(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    names = list(COLOURS)
    for split, count in (("train", 16), ("val", 6)):
        images, annotations = [], []
        for number in range(count):
            back, front = names[number % 4], names[(number // 4 + number + 1) % 4]
            picture = Image.new("RGB", (48 + number, 40), COLOURS[back])
            picture.paste(COLOURS[front], (8, 8, 20 + number, 28))
            key = number + (100 if split == "train" else 900)
            picture.save(folder / "images" / f"{key}.png")
            images.append({"id": key, "file_name": f"{key}.png", "width": picture.width, "height": picture.height})
            texts = [f"a {front} square on {back} .", f"the {front} square", f"image of a {front} square"]
            annotations += [{"id": len(annotations) + i, "image_id": key, "caption": t} for i, t in enumerate(texts)]
        (folder / f"captions_{split}.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def _write_regions(folder: Path) -> None:
    """The squares of each photo as a region with a phrase, and as a class."""
    categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS)]
    for split in ("train", "val"):
        images = json.loads((folder / f"captions_{split}.json").read_text())["images"]
        common, annotations = {"types": ["other"], "iscrowd": 0, "area": 9}, []
        for place, image in enumerate(images):
            colour = list(COLOURS)[(place // 4 + place + 1) % 4]
            box = {"id": place, "image_id": image["id"], "bbox": [8, 8, 12 + place, 20]} | common
            annotations.append(box | {"phrases": [f"a {colour} square"], "category_id": place // 4 % 4})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"regions_{split}.json").write_text(json.dumps(content))
    (folder.parent / "classes.txt").write_text("\n".join(COLOURS))
    (folder.parent / "tags.txt").write_text("\n".join([*COLOURS, "square"]))


def _write_preset(folder: Path) -> None:
    """The embedded preset with a 64-pixel view, a frozen tower, one layer each and the tiny language model."""
    tiny_llm().save_pretrained(folder / "llm")
    tiny_tokenizer().save_pretrained(folder / "llm")
    preset = yaml.safe_load((PRESET_FOLDER / "embedded.yaml").read_text())
    preset.update(name="tiny", assets=None, image_queries=6, name_queries=2)
    preset["vision"].update(image_size=64, tokens=4, adapted_from=None)
    preset["image_qformer"].update(layers=1, intermediate=64)  # width: that of the names' word embeddings
    preset["name_qformer"].update(layers=1, intermediate=64)
    preset["regions"] |= {"hidden": 8, "inner": 8, "lora_rank": 2}
    preset["regions"]["head"] = {"width": 16, "layers": 1, "heads": 2, "intermediate": 32, "dropout": 0.1}
    preset["language"].update(kind=str(folder / "llm"), hidden=32, lora_rank=2)
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset))


def config_for(recipe: str, output: str, **changes) -> Path:
    """A YAML file for one run of train/`recipe`.py in the tiny world; its outputs go to world()/`output`."""
    folder = world()
    settings = (REGIONS if recipe == "train_regions" else COMMON) | RECIPES[recipe] | changes
    settings |= {"output": str(folder / output), "preset": str(folder / "preset.yaml")}
    settings["start_from"] = str(folder / "start.safetensors")
    if recipe != "pretrain":
        settings["memory"] = str(folder / "memory")
    if recipe == "train_regions":
        settings |= {name: str(folder / "data" / f"{name}.txt") for name in ("tags", "classes")}
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _words(recipe: str, config: Path, folder: str = "train") -> list[Path | str]:
    """A recipe's run in float32, as words of a command."""
    script = REPOSITORY / folder / f"{recipe}.py"
    return [REPOSITORY / "tests" / "in_float32.py", script, config, "--data", world() / "data", "--quiet"]


def fork(recipe: str, config: Path) -> Fork:
    """Start a recipe as `start` does, sooner."""
    script, *words = _words(recipe, config)
    return Fork(world(), script, *words, EVCAP_CACHE=str(world() / "cache"), ACCELERATE_USE_CPU="true")


def start(recipe: str, config: Path, processes: int = 1, folder: str = "train") -> subprocess.Popen:
    """Start a recipe; several processes through `accelerate launch`."""
    command = [sys.executable]
    if processes > 1:
        # --multi_gpu with ACCELERATE_USE_CPU: else accelerate starts one process on CPUs, unless MPI is there
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
        command += ["--num_processes", str(processes)]
    command += _words(recipe, config, folder)
    variables = os.environ | {"EVCAP_CACHE": str(world() / "cache"), "OMP_NUM_THREADS": "1"}
    if "ACCELERATE_USE_DEEPSPEED" not in variables:  # which accelerate would leave out on the CPU
        variables["ACCELERATE_USE_CPU"] = "true"
    variables["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(list(map(str, command)), env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    """Wait for a recipe; its output. Fails, with that output, when the recipe failed."""
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-4000:]
    return output


def here(recipe: str, config: Path, folder: str = "train", code: int = 0) -> str:
    """Run a recipe in this process as `start` does in one of its own; its output. Threads and accelerate are put back."""
    module, threads = importlib.import_module(f"{folder}.{recipe}"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evcap.runtime, "computes_bfloat16", lambda device: False)
        patch.setenv("EVCAP_CACHE", str(world() / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("ACCELERATE_USE_CPU", "true")
        torch.set_num_threads(1)
        forget_accelerate()
        try:
            return run_recipe(module.main, config, "--data", world() / "data", "--quiet", code=code).output
        finally:
            torch.set_num_threads(threads)
            forget_accelerate()


def forget_accelerate() -> None:
    """Accelerate as it starts in a process of its own."""
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)


@functools.cache
def straight(recipe: str) -> list[dict]:
    """The log of one uninterrupted run in this process."""
    here(recipe, config_for(recipe, f"{recipe}-straight", **SAVED_ONCE))
    return log(f"{recipe}-straight")


def log(output: str) -> list[dict]:
    """What a run logged, the later record where a step was repeated."""
    rows = [json.loads(line) for line in (world() / output / "log.jsonl").read_text().splitlines()]
    return list({(row["step"], "loss" in row): row for row in rows}.values())
