"""Image-text models of transformers: which pixels and which text reach a real, random LLaVA through the real command."""

import json
from threading import Thread

import numpy as np
import pytest
import torch
from cli_tools import jsonl, run
from PIL import Image
from tiny_llava import SIDE, write_llava
from transformers import AutoProcessor

from evcap.captioner import Captioner
from evcap.config import DecodingConfig, GeneratorConfig, load_preset, shipped_memory
from evcap.errors import EvcapError
from evcap.generators.generator import Seen
from evcap.generators.image_text import ImageTextGenerator
from evcap.generators.options import chosen
from evcap.memory.memory import VisualNameMemory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    write_llava(folder)
    return folder


@pytest.fixture(scope="module")
def looking(folder):
    return Captioner.load(generator=str(folder))


@pytest.fixture
def reached(looking, monkeypatch):
    """What the model's `generate` was given: (pixels, texts) of each call."""
    model, calls = looking.generator.opened._model, []
    generate = model.generate

    def recorded(**given):
        calls.append((given["pixel_values"].float(), looking.generator.opened._tokenizer.batch_decode(given["input_ids"])))
        return generate(**given)

    monkeypatch.setattr(model, "generate", recorded)
    return calls


@pytest.fixture
def here(looking, folder, monkeypatch, tmp_path):
    def load(preset, memory, generator):
        looking.memory = VisualNameMemory.open(memory or shipped_memory(), looking.encoder_fingerprint)
        return looking

    monkeypatch.setattr("evcap.load", load)
    monkeypatch.chdir(tmp_path)
    return ["--generator", folder, "--format", "jsonl", "--quiet"]


def test_pixels_and_names_reach_it_and_a_renamed_one_too(here, folder, reached, tmp_path):
    images = [Image.effect_noise((60 + 9 * i, 50), 80).convert("RGB") for i in range(3)]
    for number, image in enumerate(images):
        image.save(f"{number}.png")
    files = ["0.png", "1.png", "2.png"]
    rows = jsonl(run("caption", *files, *here, "--max-length", 5).stdout)
    ((pixels, texts),) = reached
    wanted = AutoProcessor.from_pretrained(folder).image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels, wanted, atol=0.02)  # bfloat16 where the CPU computes in it
    for row, text in zip(rows, texts, strict=True):
        told = ", ".join(name["name"] for name in row["names"])
        asked = f"Describe this image in one sentence. It may show: {told}."
        assert text.endswith(f"\n{asked}\nassistant:")
        assert text.count("<image>") == (SIDE // 14) ** 2
    memory = VisualNameMemory.open(shipped_memory())
    first = rows[0]["names"][0]["name"]
    memory.rename(first, "zeppelin")
    memory.save(tmp_path / "memory")
    run("caption", files[0], "--memory", "memory", *here)
    assert "It may show: zeppelin" in reached[1][1][0]


def test_a_batch_says_what_each_image_alone_does(looking, folder):
    """Prompts of unequal length, beams and several captions: against the model asked by hand, one image at a time."""
    config = chosen(load_preset("embedded"), str(folder))
    generator = looking.generator.opened
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)) for i in range(3)]
    names = [["dog"], [], ["a cat", "two old trees"]]
    queries = torch.zeros(3, 32, 384)
    decoding = DecodingConfig(beams=3, min_length=2, max_length=7)
    together = generator.captions(Seen(queries, names, images), 2, decoding)
    processor, model = AutoProcessor.from_pretrained(folder), generator._model
    for said, image, row in zip(together, images, names, strict=True):
        asked = config.prompt + (config.names.replace("{names}", ", ".join(row)) if row else "")
        inputs = processor(images=image, text=f"user: <image>\n{asked}\nassistant:", return_tensors="pt").to(model.dtype)
        ways = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 7, "min_new_tokens": 2, "do_sample": False}
        found = model.generate(**inputs, **ways)[:, inputs["input_ids"].shape[1] :]
        assert said == [" ".join(text.split()) for text in processor.batch_decode(found, skip_special_tokens=True)]


def test_letters_are_picked_by_the_next_token(looking):
    generator = looking.generator.opened
    image = Image.new("RGB", (30, 30), (200, 10, 10))
    parts = ["Which?", image, "A or B or C"]
    inputs = generator._processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "Which?"}, {"type": "image", "image": image}, generator._part(parts[2])],
            }
        ],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(generator._model.dtype)
    logits = generator._model(**inputs).logits[0, -1]
    letters = [generator._tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ABC"]
    assert generator.pick(parts, 3) == int(logits[letters].argmax())


def test_a_name_that_is_the_mark_of_an_image_claims_none(looking):
    generator = looking.generator.opened
    seen = Seen(torch.zeros(1, 32, 384), [["<image>", "dog"]], [Image.new("RGB", (30, 30))])
    assert len(generator.captions(seen, 1, DecodingConfig(beams=1, max_length=3))) == 1


def test_threads_get_what_one_gets(looking):
    images = [Image.new("RGB", (30, 30), (60 * i, 250 - 60 * i, 99)) for i in range(4)]
    alone = [looking.caption(image, max_length=6).caption for image in images]
    found: dict[int, str] = {}
    threads = [Thread(target=lambda i=i: found.update({i: looking.caption(images[i], max_length=6).caption})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == alone


def test_what_is_no_such_model_is_told_first(tmp_path, folder, photos, monkeypatch):
    monkeypatch.setattr("evcap.load", lambda *given, **settings: pytest.fail("it was loaded"))

    def refusal(source) -> str:
        told = run("caption", photos[0], "--generator", source, code=1).stderr
        assert told.count("\n") == 1
        return told

    (tmp_path / "silent").mkdir()
    (tmp_path / "silent" / "config.json").write_text(json.dumps({"model_type": "llava"}))
    assert "has no chat template" in refusal("./silent")
    assert "has no config.json" in refusal(".")
    assert "no such file or folder" in refusal("./nowhere")
    (tmp_path / "silent" / "config.json").write_text("{")
    assert "is damaged" in refusal("./silent")


def test_a_model_that_cannot_be_opened_is_one_line(tmp_path, folder):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(EvcapError, match="cannot be opened") as told:
        ImageTextGenerator(GeneratorConfig("image-text", str(tmp_path)), torch.device("cpu"))
    assert "\n" not in str(told.value)


def test_code_in_a_folder_is_not_run(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks whether to run it"))
    classes = {"AutoConfig": "evil.Evil", "AutoProcessor": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": classes}))
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "chat_template.jinja").write_text("x")
    with pytest.raises(EvcapError, match="cannot be opened"):
        ImageTextGenerator(chosen(load_preset("embedded"), str(tmp_path)), torch.device("cpu"))
    assert capfd.readouterr().out == ""
