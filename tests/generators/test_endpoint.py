"""Captions and answers of an OpenAI-compatible endpoint: a real server on a free port, the real command."""

import base64
import io
import re

import numpy as np
import pytest
from chat_server import said, served
from cli_tools import jsonl, run
from PIL import Image

from evcap.captioner import Captioner
from evcap.config import GeneratorConfig, shipped_memory
from evcap.errors import EvcapError
from evcap.generators.endpoint import EndpointGenerator
from evcap.generators.generator import Unanswered
from evcap.memory.memory import VisualNameMemory


@pytest.fixture
def endpoint(monkeypatch):
    with served(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def looking():
    """The shipped tower, Q-Former and memory, without a language model: what a command has beside an endpoint."""
    return Captioner.load(generator=GeneratorConfig("endpoint", "http://127.0.0.1:1/v1", "m"))


@pytest.fixture
def here(looking, monkeypatch, endpoint, tmp_path):
    """The command uses that one with the endpoint of this test."""

    def load(preset, memory, generator):
        looking.generator, looking.generator_config = EndpointGenerator(generator), generator
        looking.memory = VisualNameMemory.open(memory or shipped_memory(), looking.encoder_fingerprint)
        return looking

    monkeypatch.setattr("evcap.load", load)
    monkeypatch.chdir(tmp_path)
    return ["--generator", endpoint.url, "--generator-model", "some-model", "--format", "jsonl", "--quiet"]


def shown(body: dict) -> tuple[list[Image.Image], str]:
    """The images and the text of a request."""
    (turn,) = body["messages"]
    images = [part["image_url"]["url"] for part in turn["content"] if part["type"] == "image_url"]
    head = "data:image/jpeg;base64,"
    assert all(url.startswith(head) for url in images)
    opened = [Image.open(io.BytesIO(base64.b64decode(url[len(head) :]))) for url in images]
    return opened, "\n".join(part["text"] for part in turn["content"] if part["type"] == "text")


def names_in(text: str) -> list[str]:
    return re.search(r"It may show: (.*)\.$", text)[1].split(", ")


def test_pixels_and_names_reach_it_and_a_renamed_one_too(here, endpoint, examples, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    endpoint.script = [said("  A dog\non a couch. ")]
    (row,) = jsonl(run("caption", examples[0], *here).stdout)
    assert row["caption"] == "A dog on a couch."
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-secret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, 64)
    (image,), text = shown(body)
    with Image.open(examples[0]) as photo:
        small = photo.convert("RGB").resize((32, 32))
        assert abs(photo.width / photo.height - image.width / image.height) < 0.02
    assert np.abs(np.asarray(small, float) - np.asarray(image.resize((32, 32)), float)).mean() < 4
    names = names_in(text)
    assert names == [name["name"] for name in row["names"]] and names

    memory = VisualNameMemory.open(shipped_memory())
    memory.rename(names[0], "zeppelin")
    memory.save("memory")
    run("caption", examples[0], "--memory", "memory", *here)
    assert names_in(shown(endpoint.seen[1][2])[1])[0] == "zeppelin"


def test_large_images_are_shrunk_to_what_a_model_looks_at(here, endpoint):
    Image.effect_noise((3000, 1500), 50).convert("RGB").save("large.png")
    endpoint.script = [said("noise")]
    run("caption", "large.png", *here)
    assert shown(endpoint.seen[0][2])[0][0].size == (1344, 672)


def test_one_failing_image_does_not_end_the_batch(here, endpoint, photos):
    def by_colour(handler):
        (image,), _ = shown(endpoint.seen[-1][2])
        red, green, _ = image.getpixel((5, 5))
        status, text = (400, "no") if red > 200 > green else (503, "later") if green > 200 > red else said("fine")
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text.encode())

    endpoint.script = [by_colour]
    rows = [jsonl(run("caption", photo, *here, code=photo in photos[:2]).stdout)[0] for photo in photos]
    assert [row["caption"] for row in rows] == [None, None, "fine", "fine", "fine"]
    assert "p0.png: http" in rows[0]["error"] and "refuses: 400" in rows[0]["error"]
    assert "answered 503" in rows[1]["error"] and "(3 tries)" in rows[1]["error"]


def test_the_others_of_a_batch_are_asked_about_once(here, endpoint, photos):
    endpoint.script = [said("fine")] * 3 + [(422, "no")]
    rows = jsonl(run("caption", *photos, *here, "--batch-size", 5, code=1).stdout)
    assert sorted(row["caption"] or "" for row in rows) == ["", "", "fine", "fine", "fine"] and len(endpoint.seen) == 5


def test_a_refused_key_ends_the_run(here, endpoint, photos):
    endpoint.script = [(401, "no")]
    told = run("caption", *photos, *here, "--batch-size", 1, code=1).stderr
    assert "refuses: 401" in told and "check the key" in told and len(endpoint.seen) == 1


def test_several_captions_are_sampled(here, endpoint, photos):
    endpoint.script = [said("one"), said("two"), said("three")]
    (row,) = jsonl(run("caption", photos[0], *here, "--num-captions", 3).stdout)
    assert row["captions"] == ["one", "two", "three"]
    assert [body["temperature"] for *_, body in endpoint.seen] == [0, 1, 1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--beams", 3], "knows no beam search"),
        (["--min-length", 3], "knows no least length"),
        (["--generator-model", ""], "name the model there"),
        (["--generator", "http://"], "is no address"),
        (["--generator", "evcap"], "--generator-model is the model's name at an endpoint"),
        (["--generator", "./nowhere"], "--generator-model is the model's name at an endpoint"),
    ],
)
def test_what_an_endpoint_cannot_do_is_told_first(endpoint, photos, monkeypatch, options, reason):
    monkeypatch.setattr("evcap.load", lambda *given, **settings: pytest.fail("it was loaded"))
    given = {"--generator": endpoint.url, "--generator-model": "m"} | dict([options])
    told = run("caption", photos[0], *[part for pair in given.items() for part in pair], code=1).stderr
    assert reason in told and told.count("\n") == 1 and not endpoint.seen


def test_resuming_knows_the_generator(here, endpoint, photos):
    endpoint.script = [said("fine"), (401, "no")]
    run("caption", *photos, *here, "--output", "out.jsonl", "--batch-size", 1, code=1)
    other = [*here, "--output", "out.jsonl", "--resume"]
    other[3] = "another-model"
    told = run("caption", *photos, *other, code=1).stderr
    assert "made with another generator (endpoint http" in told and "some-model" in told and "another-model" in told
    endpoint.script.append(said("fine"))
    endpoint.script[1] = said("fine")
    run("caption", *photos, *here, "--output", "out.jsonl", "--resume")
    with open("out.jsonl") as file:
        assert len(jsonl(file.read())) == 5


def test_the_library_tells_what_came_of_the_others(looking, endpoint, photos):
    endpoint.script = [said("fine"), (413, "no")]
    looking.generator_config = GeneratorConfig("endpoint", endpoint.url, "m", "?", "{names}")
    looking.generator = EndpointGenerator(looking.generator_config)
    with pytest.raises(Unanswered, match="refuses: 413") as caught:
        looking.caption(photos[:2], batch_size=1)
    first, second = caught.value.replies
    assert first.caption == "fine" and isinstance(second, EvcapError)
    with pytest.raises(EvcapError, match="looks at pixels"):
        looking.caption_features(looking.query_features(photos[:1]))


@pytest.mark.parametrize(
    ("reply", "place"), [("B", 1), ("(C) blue", 2), ("The answer is B.", 1), ("b", None), ("E", None), ("A1", None)]
)
def test_a_letter_is_read(endpoint, reply, place):
    endpoint.script = [said(reply)]
    generator = EndpointGenerator(GeneratorConfig("endpoint", endpoint.url, "m"))
    if place is not None:
        assert generator.pick(["which?"], 4) == place
    else:
        with pytest.raises(EvcapError, match="did not answer with a letter from A to D"):
            generator.pick(["which?"], 4)


def test_replies_control_no_terminal(here, endpoint, photos):
    endpoint.script = [said("\u001b[2J\u001b]0;owned\u0007 hi\u0000there \udc80caf\u00e9")]
    (row,) = jsonl(run("caption", photos[0], *here).stdout)
    assert row["caption"] == "[2J ]0;owned hi there caf\u00e9"


def test_what_was_answered_before_a_refusal_is_kept(here, endpoint, photos):
    def by_turn(handler):
        (image,), _ = shown(endpoint.seen[-1][2])
        status, text = said("fine") if image.getpixel((5, 5))[0] > 200 else (401, "no")
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text.encode())

    endpoint.script = [by_turn]
    rows = jsonl(run("caption", *photos, *here, "--batch-size", 5, code=1).stdout)
    assert rows[0]["caption"] == "fine" and "refuses: 401" in rows[1]["error"]


@pytest.mark.parametrize(
    "url", ["http://[::1/v1", "http://a..b/v1", "http://h/v\u00fc", "http://h:99999/v1", "http://h/v1?x=1", "http:///v1"]
)
def test_addresses_of_nothing(url):
    with pytest.raises(EvcapError, match="is no address of an endpoint"):
        EndpointGenerator(GeneratorConfig("endpoint", url, "m"))
