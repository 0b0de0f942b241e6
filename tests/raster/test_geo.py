"""Boxes in pixels, thousandths, coordinates and words, against closed forms, shapely, pyproj-free round trips and loops."""

import json
import math

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from evcap.errors import EvcapError
from evcap.raster import geo

SIDES = st.integers(1, 200_000)


@st.composite
def pictures_with_box(draw):
    """(width, height, a box of at least one pixel inside)."""
    width, height = draw(SIDES), draw(SIDES)
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return width, height, (x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height)))


@given(pictures_with_box())
def test_thousandths_round_trip(case):
    width, height, box = case
    thousandths = geo.to_thousandths(box, width, height)
    back = geo.from_thousandths(thousandths, width, height)
    assert thousandths.dtype == back.dtype == np.int64
    assert thousandths.min() >= 0 and thousandths.max() <= 1000
    for side, there, again in zip([width, height] * 2, box, back, strict=True):
        assert abs(there - again) <= side / 1000


def test_thousandths_of_many_boxes():
    boxes = np.array([[0, 0, 2000, 500], [999, 250, 1000, 251]])
    assert geo.to_thousandths(boxes, 2000, 500).tolist() == [[0, 0, 1000, 1000], [500, 500, 500, 502]]


# where each CRS is at home: its code, an x and y there, and metres (or degrees) a pixel
PLACES = {
    "EPSG:32633": ((150_000, 850_000), (100_000, 9_000_000), (0.05, 30)),
    "EPSG:4326": ((-179, 170), (-80, 75), (1e-7, 1e-4)),
    "EPSG:3857": ((-19_000_000, 19_000_000), (-10_000_000, 10_000_000), (0.05, 30)),
}


@st.composite
def georeferenced(draw):
    """(code of a CRS, affine of a raster: north up or rotated, mirrored or not, with sheared pixels or not)."""
    code = draw(st.sampled_from(sorted(PLACES)))
    (west, east), (south, north), (fine, coarse) = PLACES[code]
    x, y = draw(st.floats(west, east)), draw(st.floats(south, north))
    pixel, ratio = draw(st.floats(fine, coarse)), draw(st.floats(0.5, 2))
    angle = draw(st.sampled_from([0.0, 90.0]) | st.floats(0, 360))
    shear = draw(st.sampled_from([0.0, 10.0]))
    flip = draw(st.sampled_from([-1, 1]))
    turned = Affine.translation(x, y) @ Affine.rotation(angle) @ Affine.shear(shear)
    return code, turned @ Affine.scale(pixel, flip * pixel * ratio)


@given(georeferenced(), st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1000)), min_size=1, max_size=5))
def test_pixels_go_to_the_ground_and_back(place, points):
    code, transform = place
    crs, points = CRS.from_string(code), np.array(points)
    ground = geo.pixel_to_crs(points, transform)
    for point, (x, y) in zip(points, ground, strict=True):
        assert (x, y) == pytest.approx(transform @ tuple(point), rel=1e-12)
    lonlat = geo.crs_to_lonlat(ground, crs)
    back = geo.crs_to_pixel(geo.lonlat_to_crs(lonlat, crs), transform)
    assert np.abs(back - points).max() < 0.01


def test_longitude_comes_first():
    """On the middle meridian of UTM zone 33, 15 east, the northing is 0.9996 of the arc from the equator (GRS of WGS 84)."""
    longitude, latitude = geo.crs_to_lonlat([[500_000, 5_300_000]], CRS.from_epsg(32633))[0]
    along = np.linspace(0, math.radians(latitude), 20_001)
    major, eccentricity = 6378137, 0.00669437999014
    radii = major * (1 - eccentricity) / (1 - eccentricity * np.sin(along) ** 2) ** 1.5
    assert longitude == pytest.approx(15) and 0.9996 * np.trapezoid(radii, along) == pytest.approx(5_300_000, abs=0.01)
    radius = 6378137
    x, y = 1_000_000, 2_000_000
    closed = [math.degrees(x / radius), math.degrees(2 * math.atan(math.exp(y / radius)) - math.pi / 2)]
    assert geo.crs_to_lonlat([[x, y]], CRS.from_epsg(3857))[0] == pytest.approx(closed, abs=1e-9)
    assert geo.crs_to_lonlat([[11.5, 48.1]], CRS.from_epsg(4326))[0] == pytest.approx([11.5, 48.1])


@given(georeferenced(), pictures_with_box())
def test_geometry_is_the_outline_of_the_box(place, case):
    """Valid, counterclockwise, closed; each point of the true outline within a pixel of it, read back from JSON."""
    code, transform = place
    box = np.minimum(case[2], 3000)
    box = np.maximum(box, [0, 0, *(box[:2] + 1)])
    geometry = geo.lonlat_geometry(box, transform, CRS.from_string(code))
    if geometry is None or geometry["type"] == "MultiPolygon":
        return  # the poles, the antimeridian
    polygon = shapely.from_geojson(json.dumps(geometry))
    assert polygon.is_valid and polygon.exterior.is_ccw and not polygon.interiors
    assert geometry["coordinates"][0][0] == geometry["coordinates"][0][-1]
    outline = np.array(polygon.segmentize(polygon.length / 200).exterior.coords)
    found = geo.crs_to_pixel(geo.lonlat_to_crs(outline, CRS.from_string(code)), transform)
    true = shapely.box(*box.tolist())
    assert shapely.distance(shapely.points(found), true.exterior).max() < 1
    assert shapely.Polygon(found).symmetric_difference(true).area < true.length


def test_straight_edges_have_no_more_points_than_corners():
    north_up = Affine.translation(11, 48) @ Affine.scale(1e-5, -1e-5)
    geometry = geo.lonlat_geometry((0, 0, 50_000, 20_000), north_up, CRS.from_epsg(4326))
    assert geometry == {"type": "Polygon", "coordinates": [[[11, 48], [11, 47.8], [11.5, 47.8], [11.5, 48], [11, 48]]]}
    tile = geo.lonlat_geometry((0, 0, 448, 448), Affine.translation(3e5, 6e6) @ Affine.scale(0.3, -0.3), CRS.from_epsg(32633))
    assert len(tile["coordinates"][0]) == 5
    scene = geo.lonlat_geometry((0, 0, 1e5, 1e5), Affine.translation(3e5, 7e6) @ Affine.scale(1, -1), CRS.from_epsg(32633))
    assert len(scene["coordinates"][0]) > 5


def test_outline_in_the_crs_of_a_rotated_raster():
    transform = Affine.translation(1000, 2000) @ Affine.rotation(30) @ Affine.scale(2, -2)
    ring = geo.crs_ring((10, 20, 40, 60), transform)
    assert ring.shape == (5, 2) and ring[0].tolist() == ring[-1].tolist()
    assert shapely.Polygon(ring).area == pytest.approx(30 * 40 * 4)
    fine = geo.crs_ring((10, 20, 40, 60), transform, parts=3)
    assert fine.shape == (13, 2)
    assert shapely.Polygon(ring).symmetric_difference(shapely.Polygon(fine)).area < 1e-6


@pytest.mark.parametrize(
    ("code", "transform"),
    [
        (32601, Affine.translation(305_000, 7_000_000) @ Affine.scale(10, -10)),  # zone 1 begins at 180 west
        (32660, Affine.translation(605_000, 7_000_000) @ Affine.scale(10, -10)),
        (4326, Affine.translation(179.9, 60) @ Affine.scale(1e-4, -1e-4)),
        (4326, Affine.translation(-180.1, 60) @ Affine.scale(1e-4, -1e-4)),
    ],
)
def test_box_across_the_antimeridian_is_cut_there(code, transform):
    box, crs = (0, 0, 9000, 2000), CRS.from_epsg(code)
    geometry = geo.lonlat_geometry(box, transform, crs)
    assert geometry["type"] == "MultiPolygon"
    west, east = (shapely.Polygon(part[0]) for part in geometry["coordinates"])
    assert west.is_valid and east.is_valid and west.exterior.is_ccw and east.exterior.is_ccw
    assert 175 < west.bounds[0] < west.bounds[2] == 180 and -180 == east.bounds[0] < east.bounds[2] < -175
    middle = geo.crs_to_lonlat(geo.pixel_to_crs([[4500, 1000]], transform), crs)[0]
    middle[0] = (middle[0] + 180) % 360 - 180
    assert west.contains(shapely.Point(middle)) != east.contains(shapely.Point(middle))


def test_the_whole_world_is_not_cut():
    world = 2 * math.pi * 6378137
    for code, transform in [
        (4326, Affine.translation(-180, 90) @ Affine.scale(0.1, -0.1)),
        (3857, Affine.translation(-world / 2, world / 2) @ Affine.scale(world / 3600, -world / 1800)),
    ]:
        geometry = geo.lonlat_geometry((0, 0, 3600, 1800), transform, CRS.from_epsg(code))
        bounds = shapely.from_geojson(json.dumps(geometry)).bounds
        assert geometry["type"] == "Polygon" and bounds[0] == pytest.approx(-180) and bounds[2] == pytest.approx(180)


def test_longitudes_from_0_to_360_are_brought_home():
    pacific = Affine.translation(200, 10) @ Affine.scale(0.01, -0.01)
    geometry = geo.lonlat_geometry((0, 0, 100, 100), pacific, CRS.from_epsg(4326))
    bounds = shapely.from_geojson(json.dumps(geometry)).bounds
    assert geometry["type"] == "Polygon" and bounds == pytest.approx((-160, 9, -159, 10))


def test_crs_without_a_way_to_lonlat():
    local = CRS.from_wkt('LOCAL_CS["works",UNIT["metre",1]]')
    transform = Affine.scale(1, -1)
    assert geo.lonlat_geometry((0, 0, 10, 10), transform, local) is None
    assert geo.lonlat_geometry((0, 0, 10, 10), Affine.translation(1e9, 1e9), CRS.from_epsg(32633)) is None
    with pytest.raises(EvcapError, match="no way from .* to EPSG:4326"):
        geo.crs_to_lonlat([[1, 1]], local)


def test_union():
    boxes = [[50, 60, 70, 80], [10, 90, 20, 95], [55, 5, 58, 7]]
    assert geo.union(boxes).tolist() == [10, 5, 70, 95]
    assert geo.union(boxes).tolist() == list(shapely.MultiPolygon([shapely.box(*box) for box in boxes]).bounds)


def naive_cell(box, width, height):
    """All nine areas, largest first; ties go to the cell of the centre."""
    cells = {}
    for row in range(3):
        for column in range(3):
            cell = shapely.box(column * width / 3, row * height / 3, (column + 1) * width / 3, (row + 1) * height / 3)
            cells[row, column] = cell.intersection(shapely.box(*box)).area
    return cells


NAMES = [
    ["upper left", "upper centre", "upper right"],
    ["centre left", "centre", "centre right"],
    ["lower left", "lower centre", "lower right"],
]


@given(pictures_with_box())
def test_cell_of_the_largest_overlap(case):
    width, height, box = case
    said = geo.cell_words(box, width, height)
    row, column = next((r, c) for r in range(3) for c in range(3) if NAMES[r][c] == said)
    cells = naive_cell(box, width, height)
    assert cells[row, column] == pytest.approx(max(cells.values()), rel=1e-9)


def test_cell_words():
    for row in range(3):
        for column in range(3):
            box = (column * 300 + 100, row * 200, column * 300 + 290, row * 200 + 190)
            assert geo.cell_words(box, 900, 600) == NAMES[row][column]
    assert geo.cell_words((0, 0, 900, 600), 900, 600) == "centre"
    assert geo.cell_words((500, 0, 700, 10), 900, 600) == "upper right"  # 100 in each, its centre 600 begins the third
    assert geo.cell_words((499, 0, 700, 10), 900, 600) == "upper centre"


def random_boxes(seed: int, count: int, side: int = 60) -> np.ndarray:
    corners = np.random.default_rng(seed).integers(0, side, (count, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1) + 1], axis=1)


def test_overlaps_against_shapely():
    a, b = random_boxes(0, 30), random_boxes(1, 20)
    for i, first in enumerate(shapely.box(*a.T)):
        for j, second in enumerate(shapely.box(*b.T)):
            common = first.intersection(second).area
            assert geo.intersections(a, b)[i, j] == common
            assert geo.iou(a, b)[i, j] == pytest.approx(common / first.union(second).area)
            assert geo.containment(a, b)[i, j] == pytest.approx(common / min(first.area, second.area))


def test_boxes_without_area_overlap_nothing():
    assert geo.iou([[5, 5, 5, 9]], [[0, 0, 10, 10], [5, 5, 5, 9]]).tolist() == [[0, 0]]
    assert geo.containment([[5, 5, 5, 9]], [[0, 0, 10, 10]]).tolist() == [[0]]


def naive_suppression(boxes, scores, overlap):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        for k in kept:
            width = min(boxes[i][2], boxes[k][2]) - max(boxes[i][0], boxes[k][0])
            height = min(boxes[i][3], boxes[k][3]) - max(boxes[i][1], boxes[k][1])
            smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[k]))
            if max(width, 0) * max(height, 0) / smaller > overlap:
                break
        else:
            kept.append(i)
    return kept


@given(st.integers(0, 10_000), st.integers(0, 60), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 20))
def test_suppression_against_a_loop(seed, count, overlap, most):
    boxes = random_boxes(seed, count)
    scores = np.random.default_rng(seed).integers(0, 8, count) / 8  # many ties
    kept = geo.suppress(boxes, scores, overlap)
    assert kept.dtype == np.int64 and kept.tolist() == naive_suppression(boxes.tolist(), scores.tolist(), overlap)
    assert geo.suppress(boxes, scores, overlap, most).tolist() == kept[:most].tolist()


def test_nested_tiles_count_once():
    """A coarse tile and four fine ones inside: the best of them stays; IoU would keep both (a quarter)."""
    boxes = np.array([[0, 0, 200, 200], [0, 0, 100, 100], [100, 0, 200, 100], [0, 100, 100, 200], [300, 0, 400, 100]])
    assert geo.suppress(boxes, [0.9, 0.8, 0.7, 0.6, 0.1]).tolist() == [0, 4]
    assert geo.suppress(boxes, [0.5, 0.8, 0.7, 0.6, 0.1]).tolist() == [1, 2, 3, 4]
    assert geo.iou(boxes[:1], boxes[1:2])[0, 0] == 0.25
