"""memory/build_gallery.py through its entry point: folders and CSV files in, a gallery of the tower's vectors out."""

import os

import numpy as np
import yaml
from cli_tools import run_recipe
from PIL import Image
from tiny_run import world

from evcap.encoding.keys import Encoder
from evcap.gigapixel.search.gallery import Gallery
from evcap.gigapixel.search.towers import QueryTower
from evcap.memory.memory import VisualNameMemory
from memory import build_gallery


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
    given = tmp_path / "photos", tmp_path / "more.csv", "--output", output, "--preset", preset, "--quiet"
    told = run_recipe(build_gallery.main, *given, code=1).output
    assert "4 images of 3 labels" in told
    assert "broken.png" in told
    assert not output.with_name("gallery.part").exists()
    gallery = Gallery(VisualNameMemory.open(output))
    assert sorted(gallery.labels) == ["harbor", "storage tanks", "wind turbine"]
    tower = QueryTower(Encoder(str(preset)).captioner)
    features = tower.query_features([Image.open(tmp_path / "d.png").convert("RGB")], 1)[0].mean(0).numpy()
    key = gallery.keys("wind turbine")[0]
    assert key @ features / np.linalg.norm(features) > 0.999
    assert gallery.memory.encoder == tower.encoder_fingerprint
