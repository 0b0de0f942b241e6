"""Settings files: what is read, and the one line that says what is wrong with the rest."""

import dataclasses
import typing

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_towers import MEAN, STD, tower_folder

from evcap.config import (
    PRESET_FOLDER,
    DecodingConfig,
    GeneratorConfig,
    LanguageConfig,
    Preset,
    QFormerConfig,
    RegionConfig,
    RetrievalConfig,
    VisionConfig,
    Votes,
    assets_folder,
    load_preset,
    preset_files,
    preset_path,
)
from evcap.errors import EvcapError
from evcap.yaml_files import from_dict, load_yaml

PRESETS = sorted(p.stem for p in PRESET_FOLDER.glob("*.yaml"))


def plain(name: str) -> dict:
    return yaml.safe_load((PRESET_FOLDER / f"{name}.yaml").read_text())


def refusal(tmp_path, text: str) -> str:
    """The one line that a preset file of this text is refused with."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(EvcapError) as refused:
        load_preset(path)
    message = str(refused.value)
    assert "\n" not in message and str(path) in message
    return message.replace(str(path), "FILE")


def test_presets_are_shipped():
    regions = ["dynrefer-flan-t5-xl", "dynrefer-vicuna-7b"]
    assert ["blip2-flan-t5-xl", "blip2-opt-2.7b", *regions, "embedded", "evcap-vicuna-13b", "evcap-vicuna-7b"] == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_shipped_presets_fit_together(name):
    preset = load_preset(name)
    assert preset.name == name
    assert preset.image_qformer.width == preset.name_qformer.width  # Q rides in the fusion's stream
    for qformer in (preset.image_qformer, preset.name_qformer):
        assert qformer.width % qformer.heads == 0
    assert preset.image_queries == 32 and preset.name_queries == 8
    assert preset.memory.votes or preset.memory.names == 10  # as in the release, where its rule retrieves


def test_sizes_of_the_paper():
    preset = load_preset("evcap-vicuna-13b")
    vision = preset.vision
    assert (vision.tokens, vision.width) == ((vision.image_size // vision.patch_size) ** 2 + 1, 1408) == (257, 1408)
    for qformer in (preset.image_qformer, preset.name_qformer):
        assert (qformer.width, qformer.layers, qformer.heads, qformer.intermediate) == (768, 12, 12, 3072)
        assert qformer.cross_attention_every == 2 and qformer.layer_norm_eps == 1e-12
    assert preset.language.hidden == 5120
    assert not preset.language.names_in_prompt


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plain("embedded") | {"name": "mine", "name_queries": 4}))
    assert load_preset(path) == dataclasses.replace(load_preset("embedded"), name="mine", name_queries=4)
    assert preset_path(path) == path


def test_a_file_over_its_base(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "first.yaml").write_text("base: embedded\nname: first\nassets: mine\nvision: {mean: [1, 1, 1]}\n")
    second = tmp_path / "second.yaml"
    second.write_text("base: parts/first.yaml\nvision: {image_size: 256}\nretrieval: null\n")
    preset, shipped = load_preset(second), load_preset("embedded")
    vision = dataclasses.replace(shipped.vision, mean=[1.0, 1.0, 1.0], image_size=256)
    assets = str((tmp_path / "parts" / "mine").resolve())
    assert preset == dataclasses.replace(shipped, name="first", assets=assets, vision=vision, retrieval=None)
    assert preset_files(second) == [second, tmp_path / "parts/first.yaml", PRESET_FOLDER / "embedded.yaml"]


def test_the_assets_of_a_shipped_base_are_found(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: embedded\ndecoding: {beams: 2}\n")
    preset = load_preset(path)
    assert (assets_folder(path, preset) / "trained.safetensors").is_file()
    assert preset.decoding == dataclasses.replace(load_preset("embedded").decoding, beams=2)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("base: 3", "FILE: base: expected the name or the path of a preset, found 3"),
        ("base: ''", "FILE: base: expected the name or the path of a preset, found ''"),
        ("base: mine.yaml", "FILE: base: 'mine.yaml' is based on this preset itself"),
        ("base: embedded\ncolour: 3", "FILE: unknown key 'colour'. Known keys: name, vision,"),
        ("base: embedded\nvision: {colour: 3}", "FILE: vision: unknown key 'colour'."),
    ],
)
def test_a_base_that_cannot_be(tmp_path, text, line):
    assert refusal(tmp_path, text).startswith(line)


def test_bases_in_a_circle_and_bases_that_are_missing(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: ./a.yaml")
    with pytest.raises(EvcapError, match="b.yaml: base: './a.yaml' is based on this preset itself"):
        load_preset(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: nobody")
    with pytest.raises(EvcapError, match="there is no preset 'nobody'"):
        load_preset(tmp_path / "a.yaml")


def test_unknown_key_is_named_with_its_file(tmp_path):
    message = refusal(tmp_path, yaml.safe_dump(plain("embedded") | {"colour": 3}))
    assert message.startswith("FILE: unknown key 'colour'. Known keys: name, vision,")


def test_unknown_key_inside_a_part_is_named_with_the_part(tmp_path):
    data = plain("embedded")
    data["vision"]["image_sise"] = 224
    assert refusal(tmp_path, yaml.safe_dump(data)).startswith("FILE: vision: unknown key 'image_sise'. Known keys: kind,")


def test_missing_key(tmp_path):
    data = plain("embedded")
    del data["image_qformer"]["heads"]
    assert refusal(tmp_path, yaml.safe_dump(data)) == "FILE: image_qformer: key 'heads' is missing"
    del data["language"]
    assert refusal(tmp_path, "name: x").startswith("FILE: key 'vision' is missing")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (None, "name_queries", "eight"),
        (None, "name_queries", 8.5),
        (None, "name_queries", True),
        (None, "patch_positions", 1),
        (None, "name", 3),
        (None, "assets", 3),
        (None, "vision", "efficientnet"),
        (None, "vision", [1, 2]),
        ("vision", "mean", 0.5),
        ("image_qformer", "dropout", "much"),
        ("image_qformer", "dropout", False),
        ("language", "names_in_prompt", "yes please"),
        ("decoding", "beams", None),
    ],
)
def test_wrong_type(tmp_path, part, key, value):
    data = plain("embedded")
    (data if part is None else data[part])[key] = value
    message = refusal(tmp_path, yaml.safe_dump(data))
    assert message.startswith(f"FILE: {part}: {key}: expected" if part else f"FILE: {key}: expected")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("memory: {top_k: 0}", "memory: top_k is 0, it must be at least 1"),
        ("memory: {sub_top_k: -1}", "memory: sub_top_k is -1, it must be at least 1"),
        ("memory: {names: -1}", "memory: names is -1, it must be at least 0"),
        ("memory: {votes: {neighbours: 0}}", "memory: votes: neighbours is 0, it must be at least 1"),
        ("memory: {votes: {sharpness: -3}}", "memory: votes: sharpness is -3.0, it must be at least 0"),
        ("retrieval: {lead: -0.1}", "retrieval: lead is -0.1, it must be at least 0"),
    ],
)
def test_a_number_by_which_nothing_would_be_found(tmp_path, text, line):
    assert refusal(tmp_path, f"base: embedded\n{text}\n").endswith(line)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "3"])
def test_not_a_mapping(tmp_path, text):
    assert "expected settings as key: value" in refusal(tmp_path, text)


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\tname: x", "!!python/object/apply:os.getcwd []"])
def test_not_yaml(tmp_path, text):
    assert refusal(tmp_path, text).startswith("FILE is not valid YAML: ")


def test_binary_file(tmp_path):
    path = tmp_path / "photo.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0" * 10)
    with pytest.raises(EvcapError, match="is not valid YAML"):
        load_preset(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(EvcapError, match=r"cannot read .*none.yaml: No such file"):
        load_preset(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(EvcapError, match="cannot read .*folder.yaml: not a regular file"):
        load_preset(tmp_path / "folder.yaml")


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(
        EvcapError, match="there is no preset 'embeded'. Shipped presets: blip2-flan-t5-xl, blip2-opt-2.7b, dynrefer"
    ):
        load_preset("embeded")


def test_whole_numbers_serve_as_floats(tmp_path):
    path = tmp_path / "decoding.yaml"
    path.write_text("length_penalty: 1")
    found = load_yaml(path, DecodingConfig).length_penalty
    assert found == 1.0 and isinstance(found, float)


def values_of(cls):
    """Strategy for any settings of dataclass `cls`."""
    text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))  # PyYAML writes U+0085 as a space
    simple = {
        int: st.integers(1, 10**6),
        float: st.floats(0, 1e6),
        bool: st.booleans(),
        str: text,
        list[float]: st.lists(st.floats(-10, 10)),
        list[str]: st.lists(text),
        RetrievalConfig | None: st.none() | st.builds(RetrievalConfig, *[st.floats(-9, 9)] * 4, st.floats(0, 9)),
        str | None: st.none() | st.text("abc/._", min_size=1),
        int | None: st.none() | st.integers(0, 20),
        RegionConfig | None: st.none() | st.builds(RegionConfig, st.integers(1, 9), st.integers(0, 99), st.integers(0, 99)),
        Votes | None: st.none() | st.builds(Votes, st.integers(1, 1000), st.floats(0, 100)),
    }
    hints = typing.get_type_hints(cls)
    hints.pop("source", None)  # of a tower whose sizes are read there
    return st.builds(cls, **{f: values_of(h) if dataclasses.is_dataclass(h) else simple[h] for f, h in hints.items()})


@given(values_of(Preset))
def test_round_trip_of_any_preset(tmp_path_factory, preset):
    path = tmp_path_factory.mktemp("preset") / "any.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(preset), allow_unicode=True), encoding="utf-8")
    assert load_preset(path) == preset


@given(st.sampled_from([VisionConfig, QFormerConfig, LanguageConfig, DecodingConfig]), st.data())
def test_any_misspelt_key_is_refused(cls, data):
    values = dataclasses.asdict(data.draw(values_of(cls)))
    key = data.draw(st.sampled_from(sorted(values)))
    values[key + "s"] = values.pop(key)
    with pytest.raises(EvcapError, match=f"^settings: unknown key '{key}s'"):
        from_dict(cls, values, "settings")


def test_a_tower_of_another_kind_or_source_has_nothing_of_its_base(tmp_path):
    folder = tower_folder(tmp_path / "tower", "vit")
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: embedded\nvision: {{kind: transformers, source: {folder}}}\n")
    vision = load_preset(path).vision
    assert (vision.image_size, vision.width, vision.tokens, vision.mean, vision.std) == (64, 24, 17, MEAN, STD)
    (tmp_path / "b.yaml").write_text(
        "base: embedded\ngenerator: {kind: endpoint, source: 'http://h/v1', model: m, prompt: Look}"
    )
    path.write_text("base: b.yaml\ngenerator: {kind: evcap}")
    assert load_preset(path).generator == GeneratorConfig()
    path.write_text("base: b.yaml\ngenerator: {model: other}")
    assert load_preset(path).generator == GeneratorConfig("endpoint", "http://h/v1", "other", "Look")


def test_bases_that_are_no_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "holds-itself.yaml").write_text("base: embedded\nvision: &a {x: *a}")
    for text in ('base: "a\\0.yaml"', "base: loop.yaml", "base: holds-itself.yaml\nvision: &a {x: *a}"):
        path.write_text(text)
        with pytest.raises(EvcapError) as told:
            load_preset(path)
        assert "\n" not in str(told.value)
