"""BLIP-2 as published, on random models in its own format: against transformers' own generate, for equal pixels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from cli_tools import jsonl, run
from PIL import Image
from tiny_blip2 import IMAGE_TOKEN, QUERIES, SIDE, tokenizer, write_blip2, write_preset
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from typer.testing import CliRunner

from evcap.captioner import Captioner
from evcap.errors import EvcapError
from evcap.memory.memory import VisualNameMemory
from memory import build, rebuild

TEMPLATE = "a photo with {names}, showing"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """{kind: (their model, the preset's path)}; four images."""
    folder = tmp_path_factory.mktemp("blip2")
    models = {kind: (write_blip2(folder / kind, kind), write_preset(folder, kind)) for kind in ("opt", "t5")}
    random = np.random.default_rng(0)
    return models, [Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(4)]


def theirs(model, kind: str, pixels: torch.Tensor, text: str = "", **ways) -> list[str]:
    """What transformers says; the text enters as its Blip2Processor puts it, behind the places of the image."""
    words, given = tokenizer(kind), {}
    if text:
        ids = [IMAGE_TOKEN] * QUERIES + words(text)["input_ids"]
        given = {"input_ids": torch.tensor([ids] * len(pixels))}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    found = model.generate(pixel_values=pixels, do_sample=False, **given, **ways)
    if text and kind == "opt":
        found = found[:, given["input_ids"].shape[1] :]
    return [said.strip() for said in words.batch_decode(found, skip_special_tokens=True)]


@pytest.mark.parametrize("kind", ["opt", "t5"])
@pytest.mark.parametrize("beams", [1, 4])
def test_an_empty_memory_says_what_blip2_says(world, kind, beams):
    models, images = world
    model, preset = models[kind]
    captioner = Captioner.load(preset)
    assert len(captioner.memory) == 0
    expected = theirs(model, kind, captioner.pixels(images), num_beams=beams, max_new_tokens=12)
    assert [said.caption for said in captioner.caption(images, beams=beams)] == expected
    assert len(set(expected)) > 1 and max(map(len, expected)) > 6
    assert [said.caption for image in images for said in captioner.caption([image], beams=beams)] == expected


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_lengths_and_several_captions(world, kind):
    models, images = world
    model, preset = models[kind]
    captioner = Captioner.load(preset)
    ways = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 9, "min_new_tokens": 4}
    expected = theirs(model, kind, captioner.pixels(images), **ways)
    said = captioner.caption(images, num_captions=2, beams=3, min_length=4, max_length=9)
    assert [text for row in said for text in row.captions] == expected


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_names_are_read_and_renaming_changes_what_is_read(world, kind):
    """Images with names and without in one batch: each caption is what BLIP-2 says to the text with those names."""
    models, images = world
    model, preset = models[kind]
    captioner = Captioner.load(preset)
    keys, texts = captioner.keys(images), []
    memory = VisualNameMemory.build(keys[:2], ["crow", "tea pot"], ["s"] * 2, ["a", "b"], captioner.encoder_fingerprint)
    captioner.memory = memory
    retrieve = captioner.retrieve
    captioner.retrieve = lambda queries: [row[:1] for row in retrieve(queries[:2])] + [[] for _ in queries[2:]]
    pixels = captioner.pixels(images)
    for new in ("magpie", None):
        said = captioner.caption(images, beams=2)
        told = [TEMPLATE.replace("{names}", name.name) if (name := (row.names or [None])[0]) else "" for row in said]
        assert told[0] != told[1] and told[2:] == ["", ""]
        alone = [
            theirs(model, kind, p[None], text, num_beams=2, max_new_tokens=12)[0] for p, text in zip(pixels, told, strict=True)
        ]
        assert [row.caption for row in said] == alone
        texts.append(said)
        if new:
            memory.rename("crow", new)
            memory.rename("tea pot", "kettle")
    before, after = ([row.caption for row in said] for said in texts)
    assert before[:2] != after[:2] and before[2:] == after[2:]


def test_a_prompt_of_ones_own(world, tmp_path):
    models, images = world
    model, preset = models["opt"]
    settings = yaml.safe_load(preset.read_text()) | {"generator": {"kind": "blip2", "prompt": "Question: why? Answer:"}}
    (tmp_path / "asks.yaml").write_text(yaml.safe_dump(settings))
    captioner = Captioner.load(tmp_path / "asks.yaml")
    expected = theirs(model, "opt", captioner.pixels(images), "Question: why? Answer:", num_beams=3, max_new_tokens=12)
    assert [said.caption for said in captioner.caption(images)] == expected


def test_preprocessing_is_that_of_its_processor(world):
    """Both squash to the square with Pillow's bicubic filter; the processor rounds once less or more."""
    models, images = world
    ours = Captioner.load(models["opt"][1]).pixels(images)
    processor = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    assert torch.allclose(ours, processor(images, return_tensors="pt")["pixel_values"], atol=1e-5)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_scores_are_log_probabilities(world, kind):
    """Of the likeliest text they sum to what greedy search finds: no other answer of one token scores more."""
    models, images = world
    captioner = Captioner.load(models[kind][1])
    queries = captioner.query_features(images[:1])[0]
    likeliest = captioner.generator.say(queries, "What?", 1)
    answers = ["x", "Q", "7", likeliest] if likeliest else ["x", "Q", "7"]
    scores = captioner.generator.scores(queries, "What?", answers)
    assert len(scores) == len(answers) and max(scores) < 0
    if likeliest:
        assert scores.index(max(scores)) == 3


def test_memories_are_built_with_its_qformer(world, tmp_path, monkeypatch):
    """By both recipes, alike; the command then tells names, and a caption that depends on them."""
    models, images = world
    preset = models["opt"][1]
    monkeypatch.chdir(tmp_path)
    for name, image in zip("abcd", images, strict=True):
        Path("named", name).mkdir(parents=True)
        image.save(f"named/{name}/0.png")
    Path("names.txt").write_text("a\nb\nc\nd\n")
    Path("memory.yaml").write_text(yaml.safe_dump({"folders": ["named"], "preset": str(preset)}))
    recipe(rebuild.main, "names.txt", "--images", "named", "--preset", preset, "--output", "rebuilt", "--quiet")
    recipe(build.main, "memory.yaml", "--data", ".", "--output", "built", "--quiet")

    captioner = Captioner.load(preset, "built")
    built, rebuilt = captioner.memory, VisualNameMemory.open("rebuilt", captioner.encoder_fingerprint)
    assert sorted(built.names) == sorted(rebuilt.names) == list("abcd")
    keys = dict(zip(built.names, built.keys, strict=True))
    assert all(np.array_equal(keys[name], key) for name, key in zip(rebuilt.names, rebuilt.keys, strict=True))
    expected = captioner.keys(images)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose([keys[name] for name in "abcd"], expected, atol=1e-3)

    files = [f"named/{name}/0.png" for name in "abcd"]
    options = ["--preset", preset, "--format", "jsonl", "--quiet"]
    said = jsonl(run("caption", *files, "--memory", "built", *options).stdout)
    assert all(row["names"] and row["caption"] for row in said)
    plain = jsonl(run("caption", *files, *options).stdout)
    empty = Captioner.load(preset)
    assert [(row["names"], row["caption"]) for row in plain] == [([], row.caption) for row in empty.caption(images)]
    assert [row["caption"] for row in said] != [row["caption"] for row in plain]
    assert said[0]["names"][0]["name"] in run("names", files[0], *options[:2], "--memory", "built", "--quiet").stdout


def recipe(main, *arguments) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_what_is_no_blip2_is_told_before_anything_is_loaded(world, tmp_path, monkeypatch):
    models, images = world
    preset = models["opt"][1]
    images[0].save(tmp_path / "a.png")
    monkeypatch.setattr("evcap.load", lambda *given, **settings: pytest.fail("it was loaded"))

    def refusal(**generator) -> str:
        settings = yaml.safe_load(preset.read_text()) | {"generator": {"kind": "blip2"} | generator}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
        said = run("caption", tmp_path / "a.png", "--preset", tmp_path / "mine.yaml", code=1).stderr
        assert said.count("\n") == 1
        return said

    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "is no BLIP-2: its config.json says model_type 'llama'" in refusal(source=str(tmp_path / "llama"))
    assert "has no config.json" in refusal(source=str(tmp_path))
    assert "no such file or folder" in refusal(source="./nowhere")
    assert "must hold {names}" in refusal(names="with things")
    assert "unknown generator 'blip3'" in refusal(kind="blip3")


def test_checkpoints_that_do_not_fit(world, tmp_path):
    models, images = world
    preset = models["opt"][1]
    settings = yaml.safe_load(preset.read_text())
    settings["language"]["hidden"] = 17
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(EvcapError, match="has 16 where the preset says language.hidden: 17"):
        Captioner.load(tmp_path / "wide.yaml").caption(images[0])
    folder = shutil.copytree(preset.parent / "opt", tmp_path / "opt")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if "language_projection" not in name}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    settings["language"] |= {"hidden": 16, "kind": str(folder)}
    (tmp_path / "torn.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(EvcapError, match="has no whole language_projection"):
        Captioner.load(tmp_path / "torn.yaml").caption(images[0])
