"""Image towers of transformers: patch tokens, grids and pyramids against the library's own output, families side by side."""

import dataclasses
import json
import shutil

import pytest
import torch
import transformers as t
import yaml
from tiny_run import COLOURS, world
from tiny_towers import FAMILIES, STAGED, pixels, settings_of, tower_folder

from evcap.captioner import Captioner
from evcap.config import QFormerConfig, load_preset
from evcap.errors import EvcapError
from evcap.model.build import build_encoder
from evcap.model.evcap import PatchEmbeddingNorm
from evcap.model.fingerprint import encoder_fingerprint
from evcap.model.towers import build_backbone
from evcap.model.transformers_tower import open_tower

CPU = torch.device("cpu")


def whole_model(folder):
    """As the library opens the folder: the whole CLIP, BLIP-2, ..."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(t, architecture).from_pretrained(folder).eval()
    for inner in ("vision_model", "vit", "swinv2", "convnext", "hiera"):
        model = getattr(model, inner, model)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_patch_tokens_are_the_librarys(folders, family):
    settings = settings_of(folders[family])
    tower = open_tower(settings, CPU)
    expected = whole_model(folders[family])(pixels()).last_hidden_state
    if expected.dim() == 4:  # ConvNeXt's are maps
        expected = torch.stack([row.permute(1, 2, 0).flatten(0, 1) for row in expected])
    found = tower(pixels())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.dtype == torch.float32 and found.std() > 0.01
    assert tower.prefix == FAMILIES[family][1]
    assert found.shape[1:] == (settings.tokens, settings.width)
    rows, columns = tower.grid(64, 64)
    assert tower.prefix + rows * columns == settings.tokens
    assert not tower.training and not any(p.requires_grad for p in tower.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the tower is never under it
        assert torch.equal(tower(pixels()), found)


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_lie_row_by_row(folders, family):
    """The token of a cell that turns bright changes most."""
    size = 64 if family == "hiera" else 128
    tower = open_tower(settings_of(folders[family], image_size=size), CPU)
    rows, columns = tower.grid(size, size)
    cell, dark = size // rows, 0.1 * pixels(size, size)[:1]
    for row, column in {(0, columns - 1), (rows - 1, 0), (rows // 2, columns // 2)}:
        bright = dark.clone()
        bright[:, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] += 6
        changes = (tower(bright) - tower(dark))[0, tower.prefix :].norm(dim=-1)
        assert changes.argmax() == row * columns + column


@torch.inference_mode()
@pytest.mark.parametrize("family", STAGED)
def test_pyramids(folders, family):
    """Against what leaves the blocks of each stage, watched from outside."""
    settings = settings_of(folders[family])
    tower, model = open_tower(settings, CPU), whole_model(folders[family])
    maps = tower.pyramid(pixels())
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), tower(pixels()))
    seen = []
    if family == "swinv2":
        for layer in model.encoder.layers:
            layer.blocks[-1].register_forward_hook(lambda module, given, output: seen.append(output[0]))
        model(pixels())
        seen[-1] = model.layernorm(seen[-1])
        seen = [s.transpose(1, 2).reshape(m.shape) for s, m in zip(seen, maps, strict=True)]
    elif family == "hiera":
        own = model(pixels(), output_hidden_states=True)
        seen = [s.permute(0, 3, 1, 2) for s in own.reshaped_hidden_states[1:]]
        for state, rolled in zip(own.hidden_states[1:], seen, strict=True):  # the same tokens in another order
            assert torch.equal(state.flatten(1).sort(1).values, rolled.flatten(1).sort(1).values)
    else:
        for stage in model.encoder.stages:
            stage.register_forward_hook(lambda module, given, output: seen.append(output))
        model(pixels())
    for found, expected in zip(maps, seen, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_plain_towers_have_no_pyramid(folders):
    assert open_tower(settings_of(folders["vit"]), CPU).pyramid(pixels()) == ()


@torch.inference_mode()
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "hiera"])
def test_another_image_size(folders, family):
    """Larger images, square or not, against the library's model at that size."""
    settings = settings_of(folders[family], image_size=96)
    tower, model = open_tower(settings, CPU), whole_model(folders[family])
    if family == "swinv2":
        config = model.config
        config.image_size = 96
        same = t.Swinv2Model(config).eval()
        same.load_state_dict(model.state_dict())
        model = same
    options = {} if family in STAGED or family.startswith("dinov2") else {"interpolate_pos_encoding": True}
    for height, width in ((96, 96), (96, 64)):
        expected = model(pixels(height, width), **options).last_hidden_state
        expected = expected.flatten(2).transpose(1, 2) if expected.dim() == 4 else expected
        found = tower(pixels(height, width))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        rows, columns = tower.grid(height, width)
        assert found.shape[1] == tower.prefix + rows * columns
    assert settings.tokens == tower.prefix + tower.grid(96, 96)[0] ** 2


def test_weights_that_are_missing_or_damaged(folders, tmp_path):
    short = shutil.copytree(folders["vit"], tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(EvcapError, match="has no tensor 'layers.2.*are missing"):
        open_tower(settings_of(short), CPU)
    cut = shutil.copytree(folders["vit"], tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(EvcapError, match="^image tower '.*' cannot be opened: [^\n]*$"):
        open_tower(settings_of(cut), CPU)


def test_large_towers_are_half_precision_off_the_cpu(folders, monkeypatch):
    cuda = torch.device("cuda")  # only asked for the precision; the weights stay on the CPU
    settings = settings_of(folders["siglip"])
    assert open_tower(settings, cuda).network.dtype == torch.float32
    monkeypatch.setattr("evcap.model.transformers_tower.LARGE", 1000)
    assert open_tower(settings, CPU).network.dtype == torch.float32
    tower = open_tower(settings, cuda)
    assert tower.network.dtype == torch.float16
    with torch.inference_mode():
        assert tower(pixels()).dtype == torch.float32


def test_untrained_towers_of_a_preset(folders):
    """What counts parameters builds them on the meta device."""
    settings = settings_of(folders["vit"])
    with torch.device("meta"):
        tower = build_backbone(settings)
    given = {name: p.shape for name, p in open_tower(settings, CPU).named_parameters()}
    assert {name: p.shape for name, p in tower.named_parameters()} == given


def preset_file(tmp_path, folder, **changes):
    """The tiny world's preset around a tower: the sizes of the rest, and of the tower nothing but kind and source."""
    preset = dataclasses.asdict(load_preset(world() / "preset.yaml"))
    preset |= {"vision": {"kind": "transformers", "source": str(folder)}, "patch_positions": True} | changes
    path = tmp_path / "preset.yaml"
    path.write_text(yaml.safe_dump(preset))
    return path


@pytest.mark.parametrize("family", ["clip", "dinov2-registers", "swinv2"])
def test_a_captioner_and_its_memory(folders, tmp_path, family):
    """From a preset of two lines to captions with names, through the files that users have."""
    from evcap.memory.memory import VisualNameMemory
    from evcap.model.build import build_model
    from evcap.model.evcap import trained_parts
    from evcap.weights.wheels import write_safetensors

    path = preset_file(tmp_path, folders[family])
    torch.manual_seed(0)
    untrained = build_model(load_preset(path), None)
    with torch.no_grad():
        untrained.image_qformer.queries.normal_()
    write_safetensors(trained_parts(untrained), tmp_path / "trained.safetensors")
    encoder = Captioner(untrained)
    pictures = sorted((world() / "data" / "squares" / "images").glob("1*.png"))[:4]
    names, files = list(COLOURS)[:4], [p.name for p in pictures]
    memory = VisualNameMemory.build(encoder.keys(pictures), names, ["test"] * 4, files, encoder.encoder_fingerprint)
    memory.save(tmp_path / "memory")
    captioner = Captioner.load(path, tmp_path / "memory", tmp_path / "trained.safetensors", device="cpu")
    for picture, name in zip(pictures, names, strict=True):
        answer = captioner.caption(picture, max_length=5)
        assert answer.names and answer.caption is not None
        assert captioner.memory.search(captioner.query_features([picture]).mean(1, keepdim=True), 1, 1, 1)[0][0].name == name
    rows, columns = captioner.model.backbone.grid(64, 64)
    assert captioner.attention(pictures[0]).shape == (6, rows, columns)
    # a grid of another shape, through learned positions and Q-Former
    wide = captioner.model.backbone(pixels(64, 128 if family == "swinv2" else 96))
    grid = captioner.model.backbone.grid(64, 128 if family == "swinv2" else 96)
    assert len(captioner.caption_patches(wide, grid, max_length=3)) == 2


def test_fingerprints_tell_weights_and_settings_apart(folders, tmp_path):
    def fingerprint(folder, **vision):
        path = preset_file(tmp_path, folder)
        preset = load_preset(path)
        preset = dataclasses.replace(preset, vision=settings_of(folder, **vision))
        torch.manual_seed(0)
        return encoder_fingerprint(build_encoder(preset, None))

    own = fingerprint(folders["vit"])
    moved = shutil.copytree(folders["vit"], tmp_path / "moved")
    assert fingerprint(moved) == own
    other = tower_folder(tmp_path / "other", "vit", seed=1)
    assert fingerprint(other) != own
    assert fingerprint(folders["vit"], mean=[0.1, 0.2, 0.3]) != own
    network = t.ViTForImageClassification.from_pretrained(moved)
    with torch.no_grad():
        network.vit.layers[1].mlp.fc1.bias.add_(0.01)  # fine-tuned in one place
    network.save_pretrained(moved)
    assert fingerprint(moved) != own


def test_learned_positions_leave_class_tokens_alone():
    norm = PatchEmbeddingNorm(2 + 9, 5, prefix=2)
    with torch.no_grad():
        norm.position.normal_()
    patches = torch.randn(1, 2 + 24, 5)
    found = norm(patches, (4, 6)) - norm.norm(patches)
    torch.testing.assert_close(found[:, :2], norm.position[:, :2])
    square = norm.position[:, 2:].view(1, 3, 3, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, (4, 6), mode="bicubic")
    torch.testing.assert_close(found[:, 2:].transpose(1, 2).view(1, 5, 4, 6), expected)
    torch.testing.assert_close(norm(patches[:, :11], (3, 3)), norm(patches[:, :11]))
    with pytest.raises(ValueError, match="24 patch tokens are no grid of 26"):
        norm(patches[:, 2:], (4, 6))


def test_kind_and_source_go_together(folders, tmp_path):
    text = preset_file(tmp_path, folders["vit"]).read_text()
    for change in ({"source": ""}, {"kind": "efficientnet-lite2"}):
        preset = yaml.safe_load(text)
        preset["vision"] |= change
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(preset))
        with pytest.raises(EvcapError, match="wrong.yaml: vision: `source` names the folder"):
            load_preset(tmp_path / "wrong.yaml")
    preset["vision"] = {"kind": "efficientnet-lite2", "image_size": 64}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(preset))
    with pytest.raises(EvcapError, match="wrong.yaml: vision: key 'width' is missing"):
        load_preset(tmp_path / "wrong.yaml")


def test_qformers_of_any_width_take_them(folders):
    preset = load_preset("embedded")
    qformer = QFormerConfig(width=24, layers=1, heads=2, intermediate=32)
    preset = dataclasses.replace(preset, vision=settings_of(folders["hiera"]), image_qformer=qformer, text_width=0)
    encoder = build_encoder(preset, None)
    with torch.inference_mode():
        assert encoder.query_features(encoder.patch_tokens(pixels())).shape == (2, 32, 24)
