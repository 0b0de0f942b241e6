"""memory/build_gallery.py through its entry point: folders and CSV files in, a gallery of the tower's vectors out."""

import os
import subprocess
import sys

import numpy as np
import torch
import yaml
from PIL import Image
from places import REPOSITORY
from tiny_run import world

from evcap.encoding.keys import Encoder
from evcap.gigapixel.search.gallery import Gallery
from evcap.gigapixel.search.towers import QueryTower
from evcap.memory.memory import VisualNameMemory


def build(*arguments, code: int = 0) -> str:
    program = [sys.executable, "memory/build_gallery.py", *map(str, arguments), "--quiet"]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(program, capture_output=True, text=True, cwd=REPOSITORY, env=variables)
    assert run.returncode == code, run.stderr
    return run.stdout + run.stderr


def test_a_gallery_of_folders_and_a_table(tmp_path):
    preset = tmp_path / "preset.yaml"
    settings = yaml.safe_load((world() / "preset.yaml").read_text()) | {"assets": "assets"}
    preset.write_text(yaml.safe_dump(settings))
    (tmp_path / "assets").mkdir()
    os.link(world() / "start.safetensors", tmp_path / "assets" / "trained.safetensors")
    for number, place in enumerate(
        ["photos/storage tanks/a.png", "photos/storage tanks/b.png", "photos/harbor/c.png", "d.png"]
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((60, 50), 60 + 40 * number).convert("RGB").save(path)
    (tmp_path / "more.csv").write_text("image,name\nd.png,wind turbine\n")
    (tmp_path / "photos" / "harbor" / "broken.png").write_bytes(b"no image")
    output = tmp_path / "gallery"
    told = build(tmp_path / "photos", tmp_path / "more.csv", "--output", output, "--preset", preset, code=1)
    assert "4 images of 3 labels" in told
    assert "broken.png" in told
    assert not output.with_name("gallery.part").exists()
    gallery = Gallery(VisualNameMemory.open(output))
    assert sorted(gallery.labels) == ["harbor", "storage tanks", "wind turbine"]
    torch.set_num_threads(1)
    tower = QueryTower(Encoder(str(preset)).captioner)
    features = tower.query_features([Image.open(tmp_path / "d.png").convert("RGB")], 1)[0].mean(0).numpy()
    key = gallery.keys("wind turbine")[0]
    assert key @ features / np.linalg.norm(features) > 0.999
    assert gallery.memory.encoder == tower.encoder_fingerprint
