"""train/train_regions.py through its entry point, in the world of coloured squares."""

import functools
import math

import pytest
import torch
from tiny_run import REGION_FILES, SAVED_ONCE, config_for, finish, here, log, start, world

from evcap.captioner import Captioner
from evcap.config import load_preset
from evcap.errors import EvcapError
from evcap.images.opening import open_image
from evcap.memory.memory import VisualNameMemory
from evcap.model.build import build_model
from evcap.regions.describe import RegionDescriber
from evcap.regions.model import open_regions
from evcap.weights.wheels import read_safetensors

BRIEF = {"max_steps": 4, "warmup": 1, "captioned": 1, "predicted_words": 0.5, "colour_weight": 1.0}


def tensors(output: str, name: str = "last") -> dict[str, torch.Tensor]:
    return read_safetensors(world() / output / f"{name}.safetensors")


@functools.cache
def whole() -> str:
    """The output of a run without a pause."""
    here("train_regions", config_for("train_regions", "regions-whole", **BRIEF | SAVED_ONCE))
    return "regions-whole"


def test_a_run_learns_the_parts_of_regions_and_nothing_else():
    before = (world() / "start.safetensors").read_bytes()
    rows = log(whole())
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [0, 1, 2, 3]
    for row in steps:
        assert all(math.isfinite(row[name]) for name in ("loss", "caption", "tag", "text", "class", "colour"))
        parts = row["caption"] + 0.01 * row["tag"] + 0.5 * row["text"] + 0.5 * row["class"] + row["colour"]
        assert row["loss"] == pytest.approx(parts, rel=1e-4)
    assert any("cider" in row for row in rows)
    assert (world() / "start.safetensors").read_bytes() == before
    spine = build_model(load_preset(world() / "preset.yaml"), world() / "start.safetensors")
    spine.language.merge()
    torch.manual_seed(3)
    drawn = open_regions(spine, spine.language, None).trained()
    found = tensors(whole())
    assert found.keys() == drawn.keys() == tensors(whole(), "best").keys()
    assert not torch.equal(found["projection.weight"], spine.projection.weight)
    for part in ("view_fusion", "tag_head", "region_text_head", "language"):
        assert any(name.startswith(part) for name in found)
    moved = [name for name in found if name.endswith(".up") and found[name].abs().max() > 0]
    assert moved and found["view_fusion.mlp.2.weight"].abs().max() > 0  # both begin at 0


def test_what_was_trained_describes_regions():
    spine = build_model(load_preset(world() / "preset.yaml"), world() / "start.safetensors")
    spine.language.merge()
    captioner = Captioner(spine)
    captioner.memory = VisualNameMemory.open(world() / "memory", captioner.encoder_fingerprint)
    describer = RegionDescriber.open(captioner, world() / "preset.yaml", world() / whole() / "last.safetensors")
    describer.set_classes(["red", "blue"])
    image = open_image(world() / "data" / "squares" / "images" / "100.png")
    (found,) = describer.describe(image, [(8, 8, 20, 28)])
    assert found.caption and found.names and found.class_name in ("red", "blue")


def test_a_run_that_goes_on_ends_with_the_same_tensors(monkeypatch):
    from evcap.training.loop import TrainingLoop

    expected, update = tensors(whole()), TrainingLoop._update

    def stops(self, step):
        if step == 2:  # two steps are saved
            raise EvcapError("stopped here")
        return update(self, step)

    config = config_for("train_regions", "regions-resumed", **BRIEF)
    monkeypatch.setattr(TrainingLoop, "_update", stops)
    assert "stopped here" in here("train_regions", config, code=1)
    monkeypatch.undo()
    here("train_regions", config)
    found = tensors("regions-resumed")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert log("regions-resumed") == log(whole())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ratios": [0.0, 1.0]}, "2 ratios, the preset's regions have 3 views"),
        ({"drawn": 0}, "3 views of a region, 2 are kept: raise `drawn`"),
        ({"validation": [REGION_FILES | {"file": "none.json"}]}, "none.json"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(changes, said):
    config = config_for("train_regions", f"regions-{next(iter(changes))}", **BRIEF | changes)
    output = here("train_regions", config, code=1)
    assert said in output and len([line for line in output.splitlines() if "rror" in line or said in line]) == 1


def test_a_class_that_the_list_lacks_is_told_before_anything_is_computed():
    classes = world() / "data" / "classes.txt"
    kept = classes.read_text()
    classes.write_text("red\nblue\ngrey")
    try:
        output = here("train_regions", config_for("train_regions", "regions-classes", **BRIEF), code=1)
    finally:
        classes.write_text(kept)
    assert "classes.txt has no class 'green'" in output and "Traceback" not in output


def test_a_folder_of_another_run_is_refused():
    config = config_for("train_regions", whole(), **BRIEF | SAVED_ONCE | {"learning_rate": 2e-3})
    before = tensors(whole())
    assert "settings" in here("train_regions", config, code=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(whole()).items())


def test_without_class_boxes_and_with_fixed_views():
    changes = {"files": [REGION_FILES], "ratios": [0.0, 0.4, 1.0], "max_steps": 1, "with_names": False, "wrong_names": 0.0}
    here("train_regions", config_for("train_regions", "regions-plain", **SAVED_ONCE | changes))
    (row,) = [row for row in log("regions-plain") if "loss" in row]
    assert row["class"] == 0 and math.isfinite(row["loss"])


@pytest.mark.slow  # two processes
def test_two_processes_train_like_one_with_twice_the_accumulation():
    changes = SAVED_ONCE | {"max_steps": 2, "in_classes": 0, "text_weight": 0.0}  # contrast goes over the pairs of a pass
    here("train_regions", config_for("train_regions", "regions-one", accumulate=2, **changes))
    finish(start("train_regions", config_for("train_regions", "regions-two", accumulate=1, **changes), processes=2))
    one, two = ([row for row in log(name) if "loss" in row] for name in ("regions-one", "regions-two"))
    for mine, theirs in zip(two, one, strict=True):
        for name in ("caption", "tag"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3)
    begin = tensors(whole())
    ends = [tensors(name) for name in ("regions-one", "regions-two")]
    apart = sum((ends[0][k] - ends[1][k]).square().sum() for k in begin) ** 0.5
    size = sum((ends[0][k] - begin[k]).square().sum() for k in begin) ** 0.5
    assert apart < 1e-2 * size
