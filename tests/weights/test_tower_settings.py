"""What the folder of a tower says of itself, and the one line that says what is wrong with it."""

import json
import shutil

import pytest
import torch
import transformers as t
from tiny_towers import MEAN, STD, pixels, settings_of

from evcap.errors import EvcapError
from evcap.model.transformers_tower import open_tower

CPU = torch.device("cpu")


def test_sizes_come_from_the_folder(folders):
    settings = settings_of(folders["dinov2-registers"])
    assert (settings.image_size, settings.width, settings.tokens) == (64, 24, 4 + 16)
    assert (settings.mean, settings.std, settings.patch_size) == (MEAN, STD, 16)
    own = settings_of(folders["convnext"], image_size=96, mean=[0.0, 0.0, 0.0])
    assert (own.tokens, own.width, own.mean, own.std) == (9, 16, [0.0, 0.0, 0.0], STD)
    assert settings_of(folders["vit"], width=24, tokens=17) == settings_of(folders["vit"])


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"size": {"height": 96, "width": 96}}, 96),
        ({"size": 128}, 128),
        ({"size": {"shortest_edge": 128}, "crop_size": {"height": 96, "width": 96}, "do_center_crop": True}, 96),
        ({"size": {"shortest_edge": 128}, "crop_size": {"height": 96, "width": 96}, "do_center_crop": False}, 128),
        ({"size": {"height": 96, "width": 64}}, 64),  # two sides: the model's own
        ({}, 64),
    ],
)
def test_the_size_that_a_processor_hands_on(folders, tmp_path, processor, size):
    folder = shutil.copytree(folders["dinov2"], tmp_path / "tower")
    written = {"image_mean": MEAN, "image_std": STD} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    assert settings_of(folder).image_size == size


@torch.inference_mode()
def test_a_rest_that_the_model_itself_leaves(tmp_path):
    """As SigLIP's 384 pixels by patches of 14."""
    torch.manual_seed(0)
    sizes = {"image_size": 70, "patch_size": 16, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    model = t.SiglipVisionModel(t.SiglipVisionConfig(**sizes, num_attention_heads=2)).eval()
    model.save_pretrained(tmp_path)
    settings = settings_of(tmp_path, mean=MEAN, std=STD)
    assert (settings.image_size, settings.tokens) == (70, 16)
    expected = model(pixels(70, 70)).last_hidden_state
    torch.testing.assert_close(open_tower(settings, CPU)(pixels(70, 70)), expected, atol=1e-5, rtol=1e-5)


def test_processors_of_whole_models_and_those_that_do_not_normalise(folders, tmp_path):
    folder = shutil.copytree(folders["clip"], tmp_path / "tower")
    (folder / "preprocessor_config.json").unlink()
    inner = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 32}, "image_processor_type": "CLIPImageProcessor"}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert (settings_of(folder).image_size, settings_of(folder).std) == (32, STD)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "size": 64}))
    (folder / "processor_config.json").unlink()
    assert (settings_of(folder).mean, settings_of(folder).std) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("vit", {"image_size": 70}, "takes an image_size that 16 divides, not 70"),
        ("hiera", {"image_size": 96}, "takes images of 64 pixels only, not image_size: 96"),
        ("vit", {"width": 32}, "has width 24 at 64 pixels, not 32: leave it out"),
        ("clip", {"tokens": 16}, "has tokens 17 at 64 pixels, not 16: leave it out"),
    ],
)
def test_sizes_that_do_not_fit(folders, family, changes, said):
    with pytest.raises(EvcapError, match=said):
        settings_of(folders[family], **changes)


def test_folders_that_are_no_tower(folders, tmp_path):
    with pytest.raises(EvcapError, match="none: no such file or folder"):
        settings_of(tmp_path / "none")
    with pytest.raises(EvcapError, match="^image tower '.*' cannot be opened: "):
        settings_of(tmp_path)
    t.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(EvcapError, match="is of kind 'bert', known: vit, clip_vision_model"):
        settings_of(tmp_path)
    bare = shutil.copytree(folders["vit"], tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(EvcapError, match="no preprocessor_config.json with image_mean: set vision.mean, three numbers"):
        settings_of(bare)
    assert settings_of(bare, mean=MEAN, std=STD).mean == MEAN


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "x"},
        {"patch_size": 0},
        {"patch_size": None},
        {"image_size": "64"},
    ],
)
def test_a_config_that_means_nothing(folders, tmp_path, changes):
    folder = shutil.copytree(folders["vit"], tmp_path / "tower")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | changes))
    with pytest.raises(EvcapError, match="image tower") as error:
        settings_of(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_config_of_many_levels(folders, tmp_path, file):
    folder = shutil.copytree(folders["vit"], tmp_path / "tower")
    (folder / file).write_text('{"a": ' + "[" * 20_000 + "]" * 20_000 + "}")
    with pytest.raises(EvcapError, match="image tower"):
        settings_of(folder)


@pytest.mark.parametrize("processor", [{"size": {"height": [1], "width": [2]}}, {"image_mean": [10**400, 0, 0]}])
def test_a_processor_that_means_nothing(folders, tmp_path, processor):
    folder = shutil.copytree(folders["vit"], tmp_path / "tower")
    written = {"image_mean": MEAN, "image_std": STD} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    with pytest.raises(EvcapError, match="image tower"):
        settings_of(folder)
