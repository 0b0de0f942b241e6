"""Evidence as GeoJSON, read back with GDAL and shapely, and as the JSON of an answer."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_geom

from evcap.errors import EvcapError
from evcap.gigapixel.ask.evidence import Evidence, evidence_json, numbered, write_geojson
from evcap.gigapixel.ask.question import analyse
from evcap.raster.raster import Raster

FOUND = [
    Evidence((0, 0, 600, 400), 0.1, "a town by the sea", [], "overview"),
    Evidence((100, 50, 148, 98), 0.731234567, 'a "ship" at the pier, größer', [("ship", 0.61), ("pier", 0.4)], "fast", "ship"),
    Evidence((500, 300, 600, 400), 0.25, "tanks", [("storage tank", 0.5)], "slow", "storage tanks"),
]
TURNED = Affine.translation(500_000, 5_300_000) @ Affine.rotation(20) @ Affine.scale(0.5, -0.5)


def write_raster(path: Path, crs=None, transform=None) -> Path:
    profile = {"driver": "GTiff", "width": 600, "height": 400, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform) as raster:
        raster.write(np.random.default_rng(0).integers(0, 255, (3, 400, 600), np.uint8))
    return path


@pytest.fixture
def located(tmp_path):
    with Raster(write_raster(tmp_path / "located.tif", "EPSG:32633", TURNED)) as raster:
        yield raster


@pytest.fixture
def unlocated(tmp_path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        path = write_raster(tmp_path / "unlocated.tif")
    with Raster(path) as raster:
        yield raster


def test_opens_in_gdal(located, tmp_path):
    """GDAL finds polygons in EPSG:4326 that come back to the pixel boxes, and columns of plain types."""
    write_geojson(tmp_path / "found.geojson", located, FOUND, "Is there a ship?", "Yes.")
    info = pyogrio.read_info(tmp_path / "found.geojson")
    assert (info["driver"], info["crs"], info["geometry_type"], info["features"]) == ("GeoJSON", "EPSG:4326", "Polygon", 3)
    meta, _, geometries, columns = pyogrio.raw.read(tmp_path / "found.geojson")
    table = dict(zip(meta["fields"], columns, strict=True))
    assert table["number"].tolist() == [0, 1, 2] and table["path"].tolist() == ["overview", "fast", "slow"]
    assert table["phrase"].tolist() == ["", "ship", "storage tanks"] and table["cell"][2] == "lower right"
    assert table["score"].tolist() == [0.1, 0.731235, 0.25] and table["caption"][1] == FOUND[1].caption
    assert table["names"][0] is None and [list(n) for n in table["names"][1:]] == [["ship", "pier"], ["storage tank"]]
    assert [list(s) for s in table["similarities"][1:]] == [[0.61, 0.4], [0.5]]
    assert table["box_thousandths"][1].tolist() == [167, 125, 247, 245]
    for item, polygon, box in zip(FOUND, shapely.from_wkb(geometries), table["box_pixels"], strict=True):
        assert tuple(box) == item.box and polygon.is_valid and polygon.exterior.is_ccw
        ground = shapely.from_geojson(json.dumps(transform_geom("EPSG:4326", "EPSG:32633", shapely.geometry.mapping(polygon))))
        corners = [~TURNED @ corner for corner in ground.exterior.coords]
        assert shapely.Polygon(corners).symmetric_difference(shapely.box(*item.box)).area < 1


def test_follows_the_format(located, tmp_path):
    write_geojson(str(tmp_path / "found.geojson"), located, FOUND, "Is there a ship?", "Yes.")
    written = json.loads((tmp_path / "found.geojson").read_text())
    assert written["type"] == "FeatureCollection" and "crs" not in written
    assert (written["question"], written["answer"]) == ("Is there a ship?", "Yes.")
    for number, feature in enumerate(written["features"]):
        assert feature["type"] == "Feature" and feature["id"] == feature["properties"]["number"] == number
        longitude, latitude = feature["geometry"]["coordinates"][0][0]
        assert longitude == pytest.approx(15, abs=0.01) and latitude == pytest.approx(47.85, abs=0.01)


@pytest.mark.parametrize("lost", ["crs", "transform"])
def test_without_georeferencing_geometries_are_null(unlocated, located, tmp_path, lost):
    """Pixels as coordinates would be read as degrees; the file still opens as a table of pixel boxes."""
    raster = unlocated
    if lost == "crs":
        raster = dataclasses.make_dataclass("Seen", ["width", "height", "crs", "transform"])(600, 400, None, TURNED)
    write_geojson(tmp_path / "found.geojson", raster, FOUND, "?", "Yes.")
    meta, _, geometries, columns = pyogrio.raw.read(tmp_path / "found.geojson")
    assert geometries is None or all(geometry is None for geometry in geometries)
    assert [tuple(box) for box in dict(zip(meta["fields"], columns, strict=True))["box_pixels"]] == [i.box for i in FOUND]


def test_no_evidence(located, tmp_path):
    write_geojson(tmp_path / "found.geojson", located, [], "Is there a ship?", "No.")
    assert pyogrio.read_info(tmp_path / "found.geojson")["features"] == 0


def test_an_older_file_stays_when_the_new_one_cannot_be_written(located, tmp_path, monkeypatch):
    target = tmp_path / "found.geojson"
    target.write_text("older")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(EvcapError, match="cannot write .*found.geojson: No space left on device"):
        write_geojson(target, located, FOUND, "?", "Yes.")
    assert target.read_text() == "older" and sorted(os.listdir(tmp_path)) == ["found.geojson", "located.tif"]
    with pytest.raises(EvcapError, match="cannot write .*none/found.geojson: No such file"):
        write_geojson(tmp_path / "none" / "found.geojson", located, FOUND, "?", "Yes.")


def test_values_that_json_does_not_know(located, tmp_path):
    odd = [Evidence((0, 0, 1, 1), float("nan"), "", [("x", float("inf"))]), Evidence((0, 0, 1, 1), np.float32(0.5), "", [])]
    odd += [Evidence(tuple(np.array([1, 2, 3, 4])), 1e-12, "", [])]
    write_geojson(tmp_path / "found.geojson", located, odd, "?", "")
    rows = [feature["properties"] for feature in json.loads((tmp_path / "found.geojson").read_text())["features"]]
    assert [row["score"] for row in rows] == [None, 0.5, 1e-12] and rows[0]["similarities"] == [None]
    assert rows[2]["box_pixels"] == [1, 2, 3, 4]


def test_numbers_are_those_of_boxes():
    assert [number for number, _ in numbered(FOUND)] == [0, 1, 2]
    assert [(number, item.path) for number, item in numbered([FOUND[2], FOUND[0], FOUND[1]])] == [
        (0, "overview"),
        (1, "slow"),
        (2, "fast"),
    ]


def test_json_of_an_answer(unlocated):
    question = analyse("Is there a ship? (A) yes (B) no")
    text = evidence_json(unlocated, question, "yes", "fast", FOUND, encoded=12, tiles=400, seconds=1.23456)
    assert "\n" not in text
    told = json.loads(text)
    assert (told["question"], told["answer"], told["kind"], told["path"]) == ("Is there a ship?", "yes", "presence", "fast")
    assert (told["phrases"], told["choices"], told["seconds"]) == (["ship"], ["yes", "no"], 1.235)
    assert told["tiles"] == {"encoded": 12, "all": 400} and told["raster"]["width"] == 600
    assert [item["number"] for item in told["evidence"]] == [0, 1, 2] and told["evidence"][1]["geometry"] is None
    assert told["notes"] == unlocated.notes and any("pixel coordinates" in note for note in told["notes"])


def test_json_has_the_outline_on_the_ground(located):
    question = dataclasses.replace(analyse("Is there a ship?"), note="a note")
    told = json.loads(evidence_json(located, question, "yes", "slow", FOUND[1:], 1, 1, 0.0))
    polygon = shapely.from_geojson(json.dumps(told["evidence"][0]["geometry"]))
    assert polygon.is_valid and CRS.from_epsg(32633) == located.crs and told["notes"][-1] == "a note"
