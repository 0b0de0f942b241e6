"""eval/mme_predictions.py through its entry point with the shipped model: two images, a missing and a damaged one."""

import json

import pytest
import typer
import yaml
from PIL import Image
from places import EXAMPLES
from test_mme import CHOICES, ROW, written
from typer.testing import CliRunner

from eval import mme_predictions, mme_realworld
from evcap.cli.console import command
from evcap.evaluation.mme_realworld import read_predictions, read_questions, read_reply
from evcap.gigapixel.ask.answer import Analyst

SIZE = (288, 288)  # one tile
CONFIG = {"questions": "q.json", "images": "images", "output": "out"}
# id, image, question
ASKED = [
    ("1", "sub/one.png", "What color is the bus?"),
    ("2", "two.jpg", "How many people are in the image?"),
    ("3", "none.png", "What color is the boat?"),
    ("4", "sub/one.png", "What color is it?"),  # names nothing
    ("5", "cut.png", "What color is the roof?"),
    ("6", "two.jpg", "What color is the wolf?"),
]


@pytest.fixture(scope="module", autouse=True)
def analyst(shipped_analyst):
    """What all runs of this module load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Analyst, "load", classmethod(lambda cls, preset: shipped_analyst))
        yield shipped_analyst


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mme")
    (folder / "images" / "sub").mkdir(parents=True)
    first, second = sorted(EXAMPLES.glob("*.jpg"))[:2]
    Image.open(first).resize(SIZE).save(folder / "images" / "sub" / "one.png")
    Image.open(second).resize(SIZE).save(folder / "images" / "two.jpg")
    whole = (folder / "images" / "sub" / "one.png").read_bytes()
    (folder / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    rows = [{**ROW, "Question_id": key, "Image": name, "Text": text, "img_size": SIZE} for key, name, text in ASKED]
    rows[1]["Answer choices"] = ["(D) one", "(B) two"]  # letters need not be in order
    rows[1]["Ground truth"] = "B"
    written(folder / "q.json", rows)
    return folder


def run(data, folder, code=0, **changes):
    """The recipe with its outputs below `folder`; what it said."""
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"output": str(folder / "out")} | changes))
    app = typer.Typer()
    app.command()(command(mme_predictions.main))
    result = CliRunner().invoke(app, [str(folder / "config.yaml"), "--data", str(data), "--quiet"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stderr


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """Folder of the first run, and what it said."""
    folder = tmp_path_factory.mktemp("first")
    return folder, run(data, folder, code=1)


def lines_of(folder):
    return (folder / "out" / "predictions.jsonl").read_text().splitlines(keepends=True)


def test_every_readable_picture_is_answered(first, data):
    folder, said = first
    assert said.splitlines()[0] == "evcap: 2 of 4 images failed:" and len(said.splitlines()) == 3
    assert "none.png: there is no such file" in said and "cut.png: cut short" in said
    questions = {question.id: question for question in read_questions(data / "q.json")}
    found = read_predictions(folder / "out" / "predictions.jsonl", list(questions.values()))
    assert list(found) == ["1", "4", "2", "6"]  # an image's questions together
    for key, prediction in found.items():
        letter = read_reply(prediction.output, questions[key].choices)
        assert prediction.output == f"({letter}) {questions[key].choices[letter]}"
        for x1, y1, x2, y2 in prediction.boxes:
            assert 0 <= x1 < x2 <= SIZE[0] and 0 <= y1 < y2 <= SIZE[1]
    assert found["4"].boxes == () and found["2"].output in ("(D) one", "(B) two")
    assert sorted(path.name for path in (folder / "out" / "indexes").rglob("*.evcap")) == ["one.png.evcap", "two.jpg.evcap"]


def test_answers_are_those_of_the_analyst(first, data, analyst, tmp_path):
    from evcap.gigapixel.ask.question import analyse
    from evcap.raster.raster import Raster

    rows = {row["Question_id"]: row for row in map(json.loads, lines_of(first[0]))}
    key, name, text = ASKED[0]
    with Raster(data / "images" / name) as raster:
        said = analyst.ask(analyst.open_index(raster, tmp_path / "index"), analyse(text, None, list(CHOICES.values())))
    assert rows[key]["output"] == said.text
    assert rows[key]["boxes"] == [list(item.box) for item in said.evidence[1:]] != []


def test_scorer_reads_the_file(first, data, tmp_path):
    app = typer.Typer()
    app.command()(command(mme_realworld.main))
    given = first[0] / "out" / "predictions.jsonl", "--data", data / "q.json", "--output", tmp_path
    result = CliRunner().invoke(app, [*map(str, given)], catch_exceptions=False)
    assert result.exit_code == 0 and "2 of 6 questions have no prediction" in result.stdout
    assert json.loads((tmp_path / "metrics.json").read_text())["scores"]["overall"]["questions"] == 6


def test_a_killed_run_goes_on(first, data, tmp_path, monkeypatch):
    """After three answers and a half; the kept ones are not asked again and the file ends up the same."""
    lines = lines_of(first[0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl").write_text("".join(lines[:3]) + lines[3][:30])
    asked, ask = [], Analyst.ask

    def counting(self, index, question, *given):
        asked.append(question.text)
        return ask(self, index, question, *given)

    monkeypatch.setattr(Analyst, "ask", counting)
    run(data, tmp_path, code=1)
    assert asked == [ASKED[5][2]]
    assert lines_of(tmp_path) == lines
    run(data, tmp_path, code=1)
    assert len(asked) == 1 and lines_of(tmp_path) == lines


def test_bad_input_is_one_line(first, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl").write_text(lines_of(first[0])[0])
    for changes, line in [
        ({"budget": 50}, "was made with other settings or another model"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"images": "nowhere"}, "there is no folder"),
        ({"questions": "none.json"}, "cannot read"),
        ({"model": "x"}, "unknown key 'model'"),
    ]:
        said = run(data, tmp_path, code=1, **changes)
        assert line in said and said.count("\n") == 1
    written(data / "escape.json", [{**ROW, "Image": "../one.png"}])
    assert "'../one.png' is not a path below the folder of the images" in run(data, tmp_path, code=1, questions="escape.json")
    assert len(lines_of(tmp_path)) == 1
    (tmp_path / "out" / "predictions.jsonl").write_text("[1]\n")
    assert "is damaged" in run(data, tmp_path, code=1)
