"""Drawing by a tiny random Stable Diffusion pipeline through diffusers: the same images whatever is drawn beside them."""

from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from cli_tools import run_recipe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_diffusion import add_safety_checker, save_pipeline

from evcap.datasets import synthesis
from evcap.datasets.named_images import read_named_folders
from evcap.datasets.synthesis import Brush, draw, folder_name, model_mark, picture_seed, plan, told
from evcap.errors import EvcapError
from memory import synthesize

NAMES = ["dog", "fire hydrant", "and/or"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("diffusion") / "tiny")


def brush(folder, **changes) -> Brush:
    return Brush(str(folder), **({"count": 2, "steps": 3} | changes))


def drawn(names, target, brush) -> dict[str, np.ndarray]:
    """Pixels (64,64,3) of each drawing by its place below `target`."""
    items, _ = draw(plan(names, target, brush), brush)
    return {str(item.path.relative_to(target)): np.asarray(Image.open(item.path)).astype(int) for item in items}


def test_a_drawing_depends_on_its_name_number_and_seed_alone(folder, tmp_path):
    together = drawn(NAMES, tmp_path / "a", brush(folder, batch=4))
    alone = drawn(NAMES[::-1], tmp_path / "b", brush(folder, batch=1))
    assert sorted(together) == ["and%2For/0.png", "and%2For/1.png", "dog/0.png", "dog/1.png", "fire hydrant/0.png"] + [
        "fire hydrant/1.png"
    ]
    # products of larger matrices round differently in the last bit, which moves a value across .5 now and then
    assert max(np.abs(together[place] - alone[place]).max() for place in together) <= 1
    more = drawn(["cat", "dog"], tmp_path / "c", brush(folder, batch=4, count=3))
    assert np.abs(more["dog/1.png"] - together["dog/1.png"]).max() <= 1
    other = drawn(["dog"], tmp_path / "d", brush(folder, seed=1))
    assert np.abs(other["dog/0.png"] - together["dog/0.png"]).mean() > 10 < np.abs(more["dog/0.png"] - more["dog/1.png"]).mean()


def test_pixels_are_those_of_the_pipeline_called_by_hand(folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(picture_seed(5, "dog", 1))
    wanted = pipeline("a sketch of dog", num_inference_steps=3, guidance_scale=2.0, generator=generator).images[0]
    settings = brush(folder, seed=5, template="a sketch of {name}", guidance=2.0, batch=1)
    assert (drawn(["dog"], tmp_path, settings)["dog/1.png"] == np.asarray(wanted)).all()


def test_each_png_tells_how_it_was_made_and_the_folder_reader_gives_the_names_back(folder, tmp_path):
    drawn(NAMES, tmp_path, brush(folder))
    assert told(tmp_path / "and%2For" / "1.png") == {
        "name": "and/or",
        "prompt": "a photo of and/or",
        "seed": str(picture_seed(0, "and/or", 1)),
        "model": model_mark(str(folder)),
        "steps": "3",
        "guidance": "7.5",  # the pipeline's own
    }
    assert Counter(item.name for item in read_named_folders(tmp_path, "s")) == dict.fromkeys(NAMES, 2)


def test_what_was_drawn_is_kept_unless_it_is_damaged_or_of_other_settings(folder, tmp_path, monkeypatch):
    before = drawn(NAMES, tmp_path, brush(folder))
    dog, torn = tmp_path / "dog" / "0.png", tmp_path / "fire hydrant" / "1.png"
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    torn.write_bytes(torn.read_bytes()[:500])
    again = drawn(NAMES, tmp_path, brush(folder, batch=3))
    changed = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert changed == [torn] and max(np.abs(before[place] - again[place]).max() for place in before) <= 1

    def changes(**settings) -> bool:
        stamp = dog.stat().st_mtime_ns
        drawn(["dog"], tmp_path, brush(folder, **settings))
        return dog.stat().st_mtime_ns != stamp

    assert not changes(steps=None)  # where steps are not asked for, any will do
    assert changes(steps=4) and changes(seed=2) and changes(template="{name}") and changes(guidance=1.0)
    monkeypatch.setattr(synthesis, "open_pipeline", lambda brush: pytest.fail("loaded for nothing"))
    drawn(["dog"], tmp_path, brush(folder, steps=3, guidance=1.0))


def test_what_the_safety_checker_blanks_and_what_is_black_is_left_out(folder, tmp_path, monkeypatch):
    names = ["dog", "cat"]
    plain = drawn(names, tmp_path / "plain", brush(folder))
    checked = add_safety_checker(folder, tmp_path / "checked", plain["cat/1.png"].astype(np.uint8))
    draw(plan(["cat"], tmp_path / "out", brush(folder)), brush(folder))  # of a model without a checker
    items, blanked = draw(plan(names, tmp_path / "out", brush(checked)), brush(checked))
    assert blanked == {"cat": 1} and [f"{i.path.parent.name}/{i.path.name}" for i in items] == [
        "dog/0.png",
        "dog/1.png",
        "cat/0.png",
    ]
    assert not (tmp_path / "out" / "cat" / "1.png").exists()
    assert "1 drawings were blanked" in synthesis.blanked_line(blanked) and "cat 1" in synthesis.blanked_line(blanked)

    def black(prompts, **arguments):
        return type("Drawn", (), {"images": [Image.new("RGB", (8, 8), "black" if "cat" in p else "red") for p in prompts]})

    monkeypatch.setattr(synthesis, "open_pipeline", lambda brush: (black, {"num_inference_steps": 1, "guidance_scale": 0.0}))
    items, blanked = draw(plan(names, tmp_path / "black", brush(folder)), brush(folder))
    assert blanked == {"cat": 2} and [i.name for i in items] == ["dog", "dog"]


def test_other_weights_in_the_same_folder_are_another_model(folder, tmp_path):
    same = save_pipeline(tmp_path / "a" / "tiny")
    other = save_pipeline(tmp_path / "b" / "tiny", seed=1)
    assert model_mark(str(same)) == model_mark(str(folder)) != model_mark(str(other))
    assert model_mark("stabilityai/sdxl-turbo") == "stabilityai/sdxl-turbo"


def test_turbo_models_take_one_step_without_guidance(folder, tmp_path):
    (tmp_path / "SDXL-Turbo").symlink_to(folder)
    drawn(["dog"], tmp_path / "out", Brush(str(tmp_path / "SDXL-Turbo"), count=1))
    about = told(tmp_path / "out" / "dog" / "0.png")
    assert (about["steps"], about["guidance"]) == ("1", "0.0")


@given(st.text(min_size=1, max_size=40).filter(lambda text: text.encode(errors="ignore") == text.encode(errors="replace")))
def test_any_name_survives_as_a_folder(name):
    folder = folder_name(name)
    assert unquote(folder) == name and not {"/", "\0", "\\"} & set(folder) and not folder.startswith(".")


def test_seeds_do_not_repeat():
    seeds = {picture_seed(s, name, n) for s in range(3) for name in ("a", "b", "1 a") for n in range(20)}
    assert len(seeds) == 180 and all(0 <= seed < 2**63 for seed in seeds)


def test_bad_models_and_prompts_get_one_clear_line(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "Nothing"}')
    with pytest.raises(EvcapError, match="model is no text-to-image pipeline with safetensors weights") as caught:
        drawn(["dog"], tmp_path / "out", brush(tmp_path / "model"))
    assert "\n" not in str(caught.value)
    with pytest.raises(EvcapError, match="has no {name} in it"):
        Brush("model", template="a photo")


def test_pickled_weights_are_refused(folder, tmp_path):
    import shutil

    pickled = shutil.copytree(folder, tmp_path / "pickled")
    for weights in pickled.rglob("*.safetensors"):
        torch.save({}, weights.with_suffix(".bin"))
        weights.unlink()
    with pytest.raises(EvcapError, match="no text-to-image pipeline with safetensors"):
        drawn(["dog"], tmp_path / "out", brush(pickled))


def test_command(folder, tmp_path):
    (tmp_path / "names.txt").write_text("dog/puppy\nbat_(animal)\n")
    given = tmp_path / "names.txt", "--diffusion", folder, "--output", tmp_path / "out", "--count", 1, "--steps", 2, "--quiet"
    assert run_recipe(synthesize.main, *given).stdout == f"{tmp_path / 'out'}: 2 drawings of 2 names\n"
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in tmp_path.rglob("*.png")) == ["bat/0.png", "dog/0.png"]
