"""memory/rebuild.py in a tiny world with a tiny diffusion pipeline: killed, resumed, extended, and the same keys again."""

import functools
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from forks import Fork
from PIL import Image
from tiny_diffusion import save_pipeline
from tiny_run import world
from typer.testing import CliRunner

from evcap.config import shipped_memory
from evcap.errors import EvcapError
from evcap.memory.memory import VisualNameMemory
from evcap.progress import silent
from memory import rebuild

NAMES = ["red/crimson", "teapot", "kite_(toy)/paper kite", "wolf", "stop sign"]


@functools.cache
def diffusion() -> Path:
    return save_pipeline(world() / "diffusion")


@pytest.fixture
def folder(tmp_path) -> Path:
    """names.txt, and two images of a paper kite, one of a boat, and of teapots a file that is none."""
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    for number, name in enumerate(["Paper_Kite", "Paper_Kite", "boat"]):
        path = tmp_path / "photos" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((50, 40), 90 + number).convert("RGB").save(path)
    return tmp_path


def arguments(folder: Path, *more, target: str = "--output") -> list[str]:
    given = [folder / "names.txt", target, folder / "memory", "--preset", world() / "preset.yaml"]
    given += ["--trained", world() / "start.safetensors", "--reuse", world() / "memory", "--images", folder / "photos"]
    return [str(argument) for argument in [*given, "--steps", "8", "--quiet", *more]]


def start(folder: Path, *more, target: str = "--output") -> Fork:
    return Fork(folder, "memory/rebuild.py", *arguments(folder, *more, target=target))


def run(folder: Path, *more, target: str = "--output", code: int = 0):
    """The recipe run in this process, by its command line."""
    app = typer.Typer()
    app.command()(rebuild.main)
    result = CliRunner().invoke(app, arguments(folder, *more, target=target), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def opened(folder: Path) -> VisualNameMemory:
    return VisualNameMemory.open(folder / "memory")


def drawings(folder: Path) -> dict[str, bytes]:
    work = folder / "memory.work"
    return {str(path.relative_to(work)): path.read_bytes() for path in sorted(work.rglob("*.png"))}


def encoded(folder: Path) -> int:
    """Images whose keys are on disk, before there is a memory."""
    return sum(int(np.fromfile(path, np.uint8).sum()) for path in (folder / "memory.work" / "keys").glob("*.rows"))


def untouched(folder: Path, target: Path) -> Path:
    """A folder with the same names and images, for a run that nobody kills."""
    shutil.copytree(folder / "photos", target / "photos")
    shutil.copy(folder / "names.txt", target)
    return target


def equal(one: VisualNameMemory, two: VisualNameMemory) -> bool:
    return all(getattr(one, c) == getattr(two, c) for c in ("names", "sources", "images")) and bool(
        (one.keys == two.keys).all()
    )


@pytest.mark.slow
def test_killed_and_resumed_it_makes_the_same_drawings_and_keys(folder, tmp_path):
    draw = ["--diffusion", diffusion(), "--count", 4, "--drawing-batch", 2]
    killed = start(folder, *draw)
    while killed.alive() and len(drawings(folder)) < 3:
        time.sleep(0.005)
    killed.kill()
    before = {path: path.stat().st_mtime_ns for path in (folder / "memory.work").rglob("*.png")}
    assert 3 <= len(before) < 12 and not (folder / "memory").exists()
    said, complaints = start(folder, *draw).finish()
    assert "evcap:" not in complaints, complaints  # libraries may say what they like
    assert said.splitlines() == [
        f"{folder / 'memory'}: 15 entries of 5 names",
        "  reused           1 entries of      1 names",
        "  images           2 entries of      1 names",
        "  drawn           12 entries of      3 names",
    ]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert os.listdir(folder / "memory.work") == ["drawings"]

    straight = untouched(folder, tmp_path / "straight")
    start(straight, *draw).finish()
    assert drawings(folder) == drawings(straight) and len(drawings(straight)) == 12
    one, two = opened(folder), opened(straight)
    assert one.names == two.names == ["red"] + ["kite"] * 2 + ["teapot"] * 4 + ["wolf"] * 4 + ["stop sign"] * 4
    assert equal(one, two) and one.images[1:4] == ["Paper_Kite/0.png", "Paper_Kite/1.png", "teapot/0.png"]
    assert one.sources[1:4] == ["photos", "photos", "drawn by diffusion"]
    shipped = VisualNameMemory.open(world() / "memory")
    assert np.abs(one.keys[0] - shipped.keys[shipped.names.index("red")]).max() < 1e-3


@pytest.mark.slow
def test_killed_at_random_moments_while_it_encodes_it_makes_the_same_keys(folder, tmp_path):
    draw, count = random.Random(0), 60
    for number in range(count - 2):  # beside the paper kites
        path = folder / "photos" / ("wolf", "teapot")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((50, 40), 90 + number).convert("RGB").save(path)
    known = 0
    for _ in range(4):
        killed, goal = start(folder, "--batch", 1), known + draw.randrange(1, 6)
        while killed.alive() and encoded(folder) < goal:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01))
        killed.kill()
        assert goal <= encoded(folder) < count and not (folder / "memory").exists()
        known = encoded(folder)
        (rows,) = (folder / "memory.work" / "keys").glob("*.f16")
        keys = np.fromfile(rows, np.float16).reshape(count, -1)
    assert f"images          {count} entries of      3 names" in start(folder, "--batch", 1).finish()[0]
    assert not (folder / "memory.work").exists()
    straight = untouched(folder, tmp_path / "straight")
    start(straight, "--batch", 1).finish()
    assert equal(opened(folder), opened(straight))
    assert (keys[:known] == opened(folder).keys[1 : 1 + known]).all()  # behind the red one of the other memory


def test_names_without_anything_are_listed_and_an_extension_adds_them(folder):
    said = run(folder).stdout
    assert "3 entries of 2 names" in said and said.endswith("  nothing for 3 names: teapot, wolf, stop sign\n")
    before = opened(folder)
    (folder / "names.txt").write_text("kite\nwolf\nboat\n")
    draw = ["--diffusion", diffusion(), "--count", 1]
    said = run(folder, *draw, target="--extend").stdout
    assert said.splitlines()[1:] == [
        "  there            2 entries of      1 names",
        "  images           1 entries of      1 names",
        "  drawn            1 entries of      1 names",
    ]
    after = opened(folder)
    assert after.names == [*before.names, "boat", "wolf"] and (after.keys[:3] == before.keys).all()
    run(folder, target="--extend")
    assert opened(folder).names == after.names


def test_keys_hardly_change_with_the_batch_sizes(folder, tmp_path):
    draw = ["--diffusion", diffusion(), "--count", 2]
    run(folder, *draw, "--drawing-batch", 1, "--batch", 1)
    one = opened(folder)
    shutil.rmtree(folder / "memory.work")
    run(folder, *draw, "--drawing-batch", 3, "--batch", 3)
    three = opened(folder)
    assert one.names == three.names
    assert (one.keys.astype(np.float32) * three.keys.astype(np.float32)).sum(1).min() > 0.9999  # a grey level more or less


def test_a_damaged_picture_is_reported_and_the_rest_is_done(folder):
    (folder / "photos" / "teapot").mkdir()
    (folder / "photos" / "teapot" / "1.png").write_text("no image")
    result = run(folder, code=1)
    assert "3 entries of 2 names" in result.stdout and "nothing for 3 names: teapot" in result.stdout
    assert result.stderr.startswith("evcap: 1 of 3 images failed:\n") and "teapot/1.png: not an image" in result.stderr


def test_a_quiet_run_builds_its_index_quietly(folder, monkeypatch):
    asked, save = [], VisualNameMemory.save
    monkeypatch.setattr(
        VisualNameMemory, "save", lambda self, to, progress=None: asked.append(progress) or save(self, to, progress)
    )
    run(folder)
    assert asked == [silent]


def test_bad_calls_get_one_clear_line(folder):
    with pytest.raises(EvcapError, match="name one folder"):
        run(folder, "--extend", folder)
    with pytest.raises(EvcapError, match="memory does not exist"):
        run(folder, target="--extend")
    with pytest.raises(EvcapError, match="the shipped memory is only read"):
        rebuild.main(folder / "names.txt", output=shipped_memory())
    (folder / "names.txt").write_text("qbuzz\n")
    with pytest.raises(EvcapError, match="there is nothing for qbuzz: give images"):
        run(folder)
    with pytest.raises(EvcapError, match="made by another encoder|was made by encoder"):
        run(folder, "--reuse", shipped_memory())
    assert not (folder / "memory").exists()


def test_a_presets_own_memory_is_reused_and_may_be_written(folder):
    """A preset of one's own: nothing to reuse at first, then its memory grows by the names that a new list adds."""
    preset = yaml.safe_load((world() / "preset.yaml").read_text()) | {"assets": "assets"}
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
    (folder / "assets").mkdir()
    shutil.copy(world() / "start.safetensors", folder / "assets" / "trained.safetensors")
    assert rebuild.own_memory(str(folder / "preset.yaml")) is None
    options = {"images": [folder / "photos"], "preset": str(folder / "preset.yaml"), "quiet": True}
    rebuild.main(folder / "names.txt", output=folder / "assets" / "memory", **options)
    assert VisualNameMemory.open(folder / "assets" / "memory").names == ["kite", "kite"]
    (folder / "names.txt").write_text("kite\nboat\n")
    rebuild.main(folder / "names.txt", output=folder / "memory", **options)
    made = opened(folder)
    assert made.names == ["kite", "kite", "boat"] and made.sources == ["photos"] * 3
    assert VisualNameMemory.open(folder / "assets" / "memory").names == ["kite", "kite"]


def test_synonyms_find_material_but_what_is_said_means_itself(folder):
    vocabulary = {"dog": {"dog", "puppy"}, "puppy": {"puppy"}, "bow": {"bow", "ribbon"}, "band": {"band", "ribbon"}}
    said = {"dog": ["dog"], "puppy": ["puppy"], "bow": ["bow"], "ribbon": ["bow", "band"], "band": ["band"]}
    assert rebuild.by_synonym(vocabulary) == said
    keys = np.eye(4, dtype=np.float32)
    memory = VisualNameMemory.build(keys, ["cat", "ribbon", "puppy", "dog"], list("abcd"), list("efgh"), "x")
    known = rebuild.known_entries(memory, vocabulary)
    assert (known.names, known.sources, known.images) == (["bow", "band", "puppy", "dog"], list("bbcd"), list("ffgh"))
    assert (known.keys == keys[[1, 1, 2, 3]]).all()
