"""`evcap ask`, and `evcap caption` of a raster, through their entry points with the shipped model, on a sheet of photos."""

import json
import shutil

import numpy as np
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from cli_tools import jsonl, run
from PIL import Image

from evcap.config import PRESET_FOLDER
from evcap.gigapixel.ask.answer import Analyst
from evcap.gigapixel.search.retrieval import Place
from evcap.raster import whole
from evcap.raster.raster import Raster

SIDE = 192  # of a photo: eight of them make more than eight tiles of 288 pixels


@pytest.fixture(scope="module", autouse=True)
def analyst(shipped_analyst):
    """What all commands of this module load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Analyst, "load", classmethod(lambda cls, *given: shipped_analyst))
        yield shipped_analyst


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """A georeferenced image of 4 x 2 photos."""
    from places import EXAMPLES

    photos = [Image.open(path).convert("RGB").resize((SIDE, SIDE)) for path in sorted(EXAMPLES.glob("*.jpg"))]
    pixels = np.concatenate([np.concatenate([np.asarray(p) for p in photos[i : i + 4]], axis=1) for i in (0, 4)])
    path = tmp_path_factory.mktemp("city") / "city.tif"
    where = {"crs": "EPSG:32633", "transform": Affine(0.3, 0, 500_000, 0, -0.3, 5_800_000)}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "photometric": "RGB"}
    with rasterio.open(path, "w", "GTiff", 4 * SIDE, 2 * SIDE, 3, dtype="uint8", **where, **layout) as file:
        file.write(pixels.transpose(2, 0, 1))
    return path


@pytest.fixture(scope="module")
def asked(city):
    """What `evcap ask --json` says, without an index before, with all files it can write."""
    files = ["--evidence", city.with_suffix(".geojson"), "--overlay", city.with_suffix(".png")]
    return json.loads(run("ask", city, "Is there a bus or a wolf?", "--json", "--quiet", *files).stdout)


def test_answer_tells_all_of_itself(asked):
    assert asked["kind"] == "presence"
    assert asked["phrases"] == ["bus", "wolf"]
    assert asked["answer"].startswith(("Yes: ", "No: "))
    assert asked["tiles"]["encoded"] == asked["tiles"]["all"] > 8
    overview, *places = asked["evidence"]
    assert overview["path"] == "overview"
    assert overview["caption"]
    assert asked["answer"].startswith("Yes") == bool(places)
    for place in places:
        x1, y1, x2, y2 = place["box_pixels"]
        assert 0 <= x1 < x2 <= 4 * SIDE
        assert 0 <= y1 < y2 <= 2 * SIDE


def test_files_of_an_answer(asked, city):
    collection = json.loads(city.with_suffix(".geojson").read_text())
    assert collection["answer"] == asked["answer"]
    with rasterio.open(city) as file:
        around = shapely.box(*rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)).buffer(1e-6)
    assert all(around.contains(shapely.geometry.shape(feature["geometry"])) for feature in collection["features"])
    with Image.open(city.with_suffix(".png")) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


def test_the_second_question_encodes_nothing(asked, city, monkeypatch):
    monkeypatch.setattr("evcap.gigapixel.tiles.index.encode_tiles", None)
    said = run("ask", city, "How many people are there?")
    assert "with people" in said.stdout
    tiles = asked["tiles"]["all"]
    assert f"looked at {tiles} of {tiles} tiles" in said.stderr


def as_told(answer: dict) -> dict:
    """An answer without its time."""
    return answer | {"seconds": 0}


def test_questions_of_one_command_are_answered_as_alone(asked, city):
    texts = ["Is there a bus or a wolf?", "is it?", "How many people are there?"]
    alone = [json.loads(run("ask", city, text, "--json", "--quiet").stdout) for text in texts[::2]]
    together = run("ask", city, *texts, "--json", "--quiet", code=1)
    assert "'is it?' names nothing" in together.stderr
    assert list(map(as_told, jsonl(together.stdout))) == list(map(as_told, alone))
    read = run("ask", city, "-", "--json", "--quiet", code=1, stdin="\n\n".join(texts[:2]))
    assert list(map(as_told, jsonl(read.stdout))) == list(map(as_told, alone[:1]))


def test_every_place_is_shown_and_the_best_are_described(analyst, city, monkeypatch):
    boxes = [(SIDE * i, SIDE * j, SIDE * i + SIDE, SIDE * j + SIDE) for j in range(2) for i in range(3)]
    found = [[Place(box, 1 - 0.1 * rank, "bus", "slow", rank < 5) for rank, box in enumerate(boxes)]]
    monkeypatch.setattr(analyst.retriever, "find", lambda *given: found)
    said = json.loads(run("ask", city, "How many buses are there?", "--json", "--quiet").stdout)
    assert said["answer"] == "Five places with buses."
    _, *places = said["evidence"]
    assert [place["box_pixels"] for place in places] == [list(box) for box in boxes[:5]]
    assert [bool(place["caption"]) for place in places] == [rank < analyst.retriever.rule.contexts for rank in range(5)]
    lines = run("ask", city, "How many buses are there?", "--quiet").stdout.splitlines()
    assert len(lines) == 6
    assert lines[-1].endswith(str(boxes[4][-1]))
    file = city.with_name("buses.geojson")
    run("ask", city, "How many buses are there?", "--quiet", "--evidence", file)
    captions = [feature["properties"]["caption"] for feature in json.loads(file.read_text())["features"]]
    assert len(captions) == 6
    assert all(captions)


def test_choices_are_answered_with_one_of_them(asked, city):
    said = run("ask", city, "What is the bus doing?", "--choice", "standing", "--choice", "flying", "--quiet").stdout
    assert said.splitlines()[0] in ("(A) standing", "(B) flying")


def test_open_questions_get_one_line(asked, city):
    first = run("ask", city, "What is beside the bus?", "--quiet").stdout.splitlines()[0]
    assert first
    again = run("ask", city, "What is beside the bus?", "--quiet").stdout.splitlines()[0]
    assert first == again


def test_caption_of_a_large_raster_is_a_paragraph(city, monkeypatch, examples, analyst):
    monkeypatch.setattr(whole, "LARGE", 4 * SIDE * 2 * SIDE)
    result = run("caption", examples[0], city, "--format", "jsonl", "--quiet")
    photo, large = jsonl(result.stdout)
    assert [photo["file"], large["file"]] == [str(examples[0]), str(city)]
    assert large["error"] is None
    assert large["caption"].endswith(".")
    with Raster(city) as raster:
        overview = Image.fromarray(raster.read((0, 0, 4 * SIDE, 2 * SIDE), (2 * 288, 288))[0])
    assert large["caption"].startswith(analyst.captioner.caption(overview).caption)


def test_a_large_photo_is_captioned_by_its_tiles_too(city, monkeypatch, tmp_path):
    with Raster(city) as raster:
        Image.fromarray(raster.read((0, 0, 4 * SIDE, 2 * SIDE))[0]).save(tmp_path / "city.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE)
    (said,) = jsonl(run("caption", tmp_path / "city.png", "--format", "jsonl", "--quiet").stdout)
    assert said["error"] is None and (tmp_path / "city.png.evcap").is_dir()


def test_a_large_raster_that_fails_costs_no_other_its_caption(asked, city, monkeypatch, tmp_path):
    monkeypatch.setattr(whole, "LARGE", 4 * SIDE * 2 * SIDE)
    files = [tmp_path / f"{name}.tif" for name in "abc"]
    for file in files:
        file.write_bytes(city.read_bytes())
        shutil.copytree(f"{city}.evcap", f"{file}.evcap")
    shutil.rmtree(tmp_path / "b.tif.evcap")
    (tmp_path / "b.tif.evcap").write_text("where its index should be")
    said = jsonl(run("caption", *files, "--format", "jsonl", "--quiet", code=1).stdout)
    assert [line["file"] for line in said] == list(map(str, files))
    assert [line["error"] is None for line in said] == [True, False, True]
    assert said[1]["error"].startswith(f"{files[1]}: cannot use ") and "\n" not in said[1]["error"]
    assert (tmp_path / "b.tif.evcap").read_text() == "where its index should be"


@pytest.mark.parametrize("text", ["Gibt es hier einen Bus?", "Is there no bus?", "¿Hay un autobús?"])
def test_what_is_not_understood_gets_no_answer(city, text):
    result = run("ask", city, text, code=1)
    assert result.stdout == "" and "was not understood: " in result.stderr and result.stderr.count("\n") == 1


def test_a_list_of_questions_of_any_origin(asked, city):
    listed = "\ufeffIs there a bus or a wolf?\r\n\ufeff\r\nIs there no bus?\r\n"
    result = run("ask", city, "-", "--json", "--quiet", code=1, stdin=listed)
    (said,) = jsonl(result.stdout)
    assert as_told(said) == as_told(asked) | {"evidence": said["evidence"]}
    assert said["question"] == "Is there a bus or a wolf?" and "'Is there no bus?' was not understood" in result.stderr


def test_a_preset_without_thresholds_is_told_before_anything_is_loaded(city, tmp_path, monkeypatch):
    settings = yaml.safe_load((PRESET_FOLDER / "embedded.yaml").read_text())
    del settings["retrieval"]
    preset = tmp_path / "preset.yaml"
    preset.write_text(yaml.safe_dump(settings | {"assets": str((PRESET_FOLDER / settings["assets"]).resolve())}))
    monkeypatch.setattr(Analyst, "load", lambda *given: pytest.fail("it was loaded"))
    told = run("ask", city, "any ships?", "--preset", preset, code=1).stderr
    assert "no thresholds for big images: run `python eval/calibrate_scenes.py CONFIG" in told and told.count("\n") == 1
    monkeypatch.setattr(whole, "LARGE", 1)
    (line,) = jsonl(run("caption", city, "--preset", preset, "--format", "jsonl", "--quiet", code=1).stdout)
    assert "no thresholds" in line["error"]


def test_remarks_name_options_that_there_are(tmp_path):
    bands = np.random.default_rng(0).integers(0, 4000, (4, 90, 90)).astype(np.uint16)
    with rasterio.open(tmp_path / "s.tif", "w", "GTiff", 90, 90, 4, dtype="uint16", photometric="MINISBLACK") as file:
        file.write(bands)
    told = run("ask", tmp_path / "s.tif", "any ships?").stderr
    assert "unless --bands names others" in told and "(--stretch)" in told
    told = run(
        "ask", tmp_path / "s.tif", "any ships?", "--bands", "4,3,2", "--stretch", "1,99", "--index", tmp_path / "i"
    ).stderr
    assert "--bands" not in told and "from percentile 1 to 99" in told


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere.tif", "any ships?"], "there is no such file"),
        (["CITY", ""], "the question is empty"),
        (
            ["CITY", "is it?"],
            'names nothing that could be looked for; ask about things, as in "any ships?", or let `evcap caption`',
        ),
        (["CITY", "any ships?", "--endpoint", "http://localhost:1/v1"], "go with --phrases-by endpoint"),
        (["CITY", "any ships?", "--phrases-by", "endpoint"], "needs --endpoint URL and --endpoint-model NAME"),
        (["CITY", "any ships?", "any cars?", "--choice", "yes"], "go with one question"),
        (["CITY", "any ships?", "--index", "FILE/index"], "cannot use"),
        (["CITY", "any ships?", "--evidence", "FILE/e.geojson", "--quiet"], "cannot write"),
    ],
)
def test_bad_input_is_one_line(city, tmp_path, arguments, line):
    (tmp_path / "file").write_text("")
    places = {"CITY": str(city), "FILE": str(tmp_path / "file")}
    given = [places.get(a, a.replace("FILE", places["FILE"])) for a in arguments]
    result = run("ask", *given, code=1)
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout
