"""docs/reproduce.md on small files in the real layouts: start tensors, a memory, training, scores; each by its own command."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from forks import Fork
from lavis_files import write_paper_files
from tiny_run import COLOURS, REPOSITORY, world

from evcap.weights.wheels import read_safetensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """LAVIS' two files, a language model, a preset that names them, and photos in folders that bear their names."""
    folder = tmp_path_factory.mktemp("paper")
    write_paper_files(folder, "assets").rename(folder / "paper.yaml")
    shutil.copytree(world() / "data" / "squares", folder / "data" / "squares")
    for number, name in enumerate(COLOURS):
        (folder / "data" / "named" / name).mkdir(parents=True)
        shutil.copy(folder / "data" / "squares" / "images" / f"{100 + number}.png", folder / "data" / "named" / name / "0.png")
    return folder


def run(folder: Path, script: str, *arguments) -> None:
    Fork(folder, script, *arguments, EVCAP_CACHE=str(folder / "cache"), ACCELERATE_USE_CPU="true").finish()


@pytest.mark.slow
@pytest.mark.parametrize("release", [False, True])
def test_from_lavis_files_to_scores(release, folder):
    name = "release" if release else "ours"
    run(folder, "data/convert_weights.py", "start", "--preset", "paper.yaml", "--output", f"{name}.safetensors")
    (folder / "memory.yaml").write_text(yaml.safe_dump({"folders": ["named"], "preset": "paper.yaml"}))
    run(folder, "memory/build.py", "memory.yaml", "--data", "data", "--output", f"memory-{name}", "--quiet")

    settings = yaml.safe_load((REPOSITORY / "train" / "configs" / "coco-vicuna-13b.yaml").read_text())
    settings |= {"output": name, "start_from": f"{name}.safetensors", "memory": f"memory-{name}", "sets": ["squares"]}
    settings |= {"release": release, "batch": 4, "epochs": 8, "learning_rate": 1e-2, "warmup": 1}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    run(folder, "train/train.py", f"{name}.yaml", "--data", "data", "--quiet")
    losses = [json.loads(line)["loss"] for line in (folder / name / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 32 and sum(losses[-6:]) < 0.9 * sum(losses[:6])
    begin, end = read_safetensors(folder / f"{name}.safetensors"), read_safetensors(folder / name / "last.safetensors")
    moved = {key for key in end if (end[key].float() - begin[key].half().float()).abs().max() > 0}
    trained = {"projection.weight", "projection.bias", "fusion.qformer.queries"}
    if release:
        assert moved == trained | {"image_qformer.queries"}
    else:
        assert moved >= trained | {"fusion.qformer.layers.2.cross_attention.key.weight"}
        assert not any(key.startswith(("fusion.embeddings.", "image_qformer.")) for key in moved)

    (folder / "assets").mkdir(exist_ok=True)
    (folder / name / "last.safetensors").replace(folder / "assets" / "trained.safetensors")
    run(folder, "memory/build.py", "memory.yaml", "--data", "data", "--output", "assets/memory", "--quiet")
    scored = {"captions": "squares/captions_val.json", "images": "squares/images", "output": f"scores-{name}", "scored": False}
    (folder / "scores.yaml").write_text(yaml.safe_dump(scored | {"preset": "paper.yaml", "max_length": 12}))
    run(folder, "eval/evaluate.py", "scores.yaml", "--data", "data", "--quiet")
    said = json.loads((folder / f"scores-{name}" / "predictions.json").read_text())
    assert len(said) == 6 and all(row["caption"] for row in said)
