"""eval/score.py: files of captions by whatever wrote them, matched by id or file name, against the libraries' own scores."""

import json
import re

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from eval.score import main
from evcap.cli.console import command
from evcap.evaluation.caption_metrics import score

SAID = {1: "a dog runs on grass", 2: "two cats on a sofa", 30: "a red bus in the street"}
TRUTH = {
    1: ["a dog is running", "a brown dog on the grass"],
    2: ["two cats lie on a couch", "cats on a sofa"],
    30: ["a bus drives", "a red bus in town"],
}
PROMPT = "A photo depicts "


def run(*arguments, code=0) -> str:
    app = typer.Typer()
    app.command()(command(main))
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


@pytest.fixture
def files(tmp_path):
    """References in COCO's format with one image more, and the images."""
    images = [{"id": key, "file_name": f"photos/{key:04}.png"} for key in [*TRUTH, 99]]
    annotations = [{"image_id": key, "caption": text} for key, texts in (TRUTH | {99: ["x"]}).items() for text in texts]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "photos").mkdir()
    for key in TRUTH:
        pixels = np.random.default_rng(key).integers(0, 256, (40, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{key:04}.png")
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([{"image_id": key, "caption": text} for key, text in SAID.items()]),
        json.dumps({str(key): text for key, text in SAID.items()}),
        "\n".join(json.dumps({"file": f"elsewhere/{key:04}.png", "caption": text}) for key, text in SAID.items()),
        "\ufeff" + json.dumps([{"image_id": f"{key}", "caption": text, "more": 1} for key, text in SAID.items()]),
    ],
    ids=["coco", "object", "lines of evcap caption", "ids as text"],
)
def test_scores_are_those_of_the_captions_however_they_are_given(files, content, without_meteor):
    (files / "said.json").write_text(content)
    told = json.loads(run(files / "said.json", files / "truth.json", "--output", files / "scores.json"))
    assert told["scores"] == pytest.approx(score(SAID, TRUTH))
    assert told["images"] == 3 and told["references_left_out"] == 1
    assert json.loads((files / "scores.json").read_text()) == told


def test_clip_scores_by_their_formula(files, clip, without_meteor):
    """One image at a time, by transformers alone."""
    from transformers import CLIPModel, CLIPProcessor

    (files / "said.json").write_text(json.dumps({str(key): text for key, text in SAID.items()}))
    scores = json.loads(run(files / "said.json", files / "truth.json", "--clip", clip, "--images", files))["scores"]
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    plain, referenced = [], []
    for key, caption in SAID.items():
        texts = [PROMPT + text for text in (caption, *TRUTH[key])]
        image = Image.open(files / "photos" / f"{key:04}.png")
        with torch.inference_mode():
            out = model(**processor(text=texts, images=image, padding=True, return_tensors="pt"))
        seen, said = (e / e.norm(dim=-1, keepdim=True) for e in (out.image_embeds, out.text_embeds))
        plain.append(2.5 * max((seen @ said[0]).item(), 0))
        near = max((said[1:] @ said[0]).max().item(), 0)
        referenced.append(2 * plain[-1] * near / max(plain[-1] + near, 1e-12))
    assert scores["CLIPScore"] == pytest.approx(100 * np.mean(plain), abs=1e-3)
    assert scores["RefCLIPScore"] == pytest.approx(100 * np.mean(referenced), abs=1e-3)
    assert scores["CLIPScore"] > 1 or scores["RefCLIPScore"] == 0


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ('[{"image_id": 7, "caption": "x"}]', "1 of 1 predictions have no reference, the first is '7'"),
        ('[{"image_id": 1}]', 'entry 1: no "image_id"'),
        ('[{"file": "a.png", "caption": null, "error": "damaged"}]', "entry 1: no .*damaged"),
        ('[{"image_id": 1, "caption": "x"}, {"image_id": 1, "caption": "y"}]', "entry 2: '1' stands a second time"),
        ('[{"image_id": 1, "caption": "x"}, {"file": "0001.png", "caption": "y"}]', "1 images have two predictions"),
        ("[1, 2", "neither JSON nor JSON lines"),
        ("[]", "nothing to score"),
        ("5", "neither a list of captions nor an object"),
        ("null", "neither a list of captions nor an object"),
        ('[{"image_id": "' + 5000 * "1" + '", "caption": "x"}]', "1 of 1 predictions have no reference"),
    ],
)
def test_bad_input_is_one_line(files, said, line):
    (files / "said.json").write_text(said)
    written = run(files / "said.json", files / "truth.json", code=1)
    assert re.search(line, written) and written.count("\n") == 1


def test_one_line_of_evcap_caption(files, without_meteor):
    """And captions with what some take for the end of a line."""
    (files / "said.jsonl").write_text(json.dumps({"file": "elsewhere/0001.png", "caption": SAID[1]}) + "\n")
    assert json.loads(run(files / "said.jsonl", files / "truth.json"))["images"] == 1
    lines = [json.dumps({"image_id": key, "caption": "a\u2028dog\u0085"}, ensure_ascii=False) for key in SAID]
    (files / "said.jsonl").write_text("\n".join(lines))
    assert json.loads(run(files / "said.jsonl", files / "truth.json"))["images"] == 3


def test_the_output_replaces_nothing_that_is_no_result(files, without_meteor):
    (files / "said.json").write_text(json.dumps({str(key): text for key, text in SAID.items()}))
    photo = files / "photos" / "0001.png"
    for output in (files / "truth.json", files / "said.json", photo, files / "none" / "x.json"):
        before = output.read_bytes() if output.exists() else None
        assert run(files / "said.json", files / "truth.json", "--output", output, code=1).count("\n") == 1
        assert (output.read_bytes() if output.exists() else None) == before
