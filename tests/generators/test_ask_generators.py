"""`evcap ask` with other generators: what reaches an endpoint through the command, and BLIP-2 in a Reader of its own."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from chat_server import said, served
from cli_tools import run
from PIL import Image
from test_endpoint import shown
from tiny_blip2 import write_blip2, write_preset
from tiny_seq2seq import seq2seq_language

from evcap.captioner import Captioner
from evcap.config import GeneratorConfig
from evcap.errors import EvcapError
from evcap.gigapixel.ask.evidence import Evidence
from evcap.gigapixel.ask.question import Question
from evcap.gigapixel.ask.reader import open_reader
from evcap.gigapixel.search.retrieval import Place, Retriever
from evcap.raster.raster import Raster

SIDE = 300
BOXES = [(0, 0, 300, 300), (600, 300, 900, 600)]


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """Six squares of one colour each."""
    colours = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [90, 90, 90], [250, 0, 250]]], np.uint8)
    path = tmp_path_factory.mktemp("sheet") / "sheet.tif"
    with rasterio.open(path, "w", "GTiff", 3 * SIDE, 2 * SIDE, 3, dtype="uint8", photometric="RGB") as file:
        file.write(colours.repeat(SIDE, 0).repeat(SIDE, 1).transpose(2, 0, 1))
    return path


@pytest.fixture
def found(monkeypatch):
    places = [[Place(box, 0.9 - 0.1 * rank, "bus", "slow", True) for rank, box in enumerate(BOXES)]]
    monkeypatch.setattr(Retriever, "find", lambda *given: places)


def middle(image: Image.Image) -> tuple:
    return tuple(round(value / 50) * 50 for value in image.getpixel((image.width // 2, image.height // 2)))


def test_images_boxes_captions_and_names_reach_an_endpoint(sheet, found, monkeypatch):
    with served(monkeypatch) as endpoint:
        captions = {"Question": "They are parked."}

        def answer(handler):
            images, text = shown(endpoint.seen[-1][2])
            count = text.count("Answer with one letter")
            reply = "(B)" if count else captions["Question"] if "Question" in text else f"seen {middle(images[0])}"
            body = said(reply)[1].encode()
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        endpoint.script = [answer]
        given = ["--generator", endpoint.url, "--generator-model", "m", "--quiet"]
        told = json.loads(run("ask", sheet, "What are the buses doing?", "--json", *given).stdout)
        assert told["answer"] == "They are parked."
        images, text = shown(endpoint.seen[-1][2])
        assert [image.size for image in images] == [(900, 600), (300, 300), (300, 300), (900, 600)]
        assert [middle(image) for image in images[1:3]] == [(250, 0, 0), (250, 0, 250)]
        assert "[0 0 333 500]" in text and "[667 500 1000 1000]" in text and "All places together: " in text
        assert "[0 0 1000 1000]" in text and "2. Place for bus" in text and text.count("Question:") == 1
        for item in told["evidence"]:
            assert item["caption"].startswith("seen ") and item["caption"] in text
            assert all(name in text for name in item["names"][:5])

        chosen = run("ask", sheet, "How many buses are there?", "--choice", "one", "--choice", "two", *given).stdout
        assert chosen.splitlines()[0] == "(B) two"
        images, text = shown(endpoint.seen[-1][2])
        assert [image.size for image in images] == [(900, 600), (900, 600)]  # the union stands for all where they are counted
        assert "(A) one\n(B) two" in text and "from A to B" in text
        refused = run("ask", sheet, "Is there a bus?", "--phrases-by", "model", *given, code=1).stderr
        assert "--phrases-by model asks evcap's own language model" in refused


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_blip2_reads_the_descriptions_before_the_question(sheet, tmp_path, kind):
    write_blip2(tmp_path / kind, kind)
    captioner = Captioner.load(write_preset(tmp_path, kind))
    reader, asked = open_reader(captioner), []
    say = captioner.generator.say
    captioner.generator.say = lambda queries, text, most: asked.append((queries, text)) or say(queries, text, 5)
    evidence = [Evidence((0, 0, 900, 600), 1.0, "a sheet", path="overview"), Evidence(BOXES[0], 0.9, "red", [("bus", 0.8)])]
    with Raster(sheet) as raster:
        question = Question("What is it?", "open", ["bus"])
        assert isinstance(reader.answer(question, evidence, raster), str)
        queries, text = asked[0]
        assert text.startswith("The whole picture: a sheet\n") and text.endswith("red (bus)\nQuestion: What is it? Answer:")
        assert queries.shape == (6, 24)
        choices = Question("What is it?", "open", ["bus"], ["red", "blue"])
        assert reader.choose(choices, evidence, raster) in ("(A) red", "(B) blue")


def test_an_encoder_decoder_is_refused_as_reader():
    captioner = SimpleNamespace(generator_config=GeneratorConfig(), model=SimpleNamespace(language=seq2seq_language("flan-t5")))
    with pytest.raises(EvcapError, match="name another one to answer: --generator"):
        open_reader(captioner)
