"""Patch plans against plain loops, closed counts and the release's own boxes."""

import json
import shutil
import tracemalloc
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from cli_tools import invoke_recipe
from hypothesis import example, given
from hypothesis import strategies as st
from places import GOLDEN

from eval import check_parity
from evcap.errors import EvcapError
from evcap.gigapixel.tiles.plans import make_plan

FOLDER = GOLDEN / "imagerag"

CC = {20: [1, 4, 9, 16, 25, 36, 49, 121, 400], 10: [1, 4, 9, 16, 36, 100]}  # counts of the release, level by level
NAMES = ["vit-448", "vit-7", "grid-10", "grid-3", "cc-20", "cc-3", "pyramid-288-0.25", "pyramid-8-0", "pyramid-8-0.5"]
sides = st.one_of(st.integers(1, 30), st.integers(1, 500))


def check(folder) -> tuple[int, str, str]:
    """The command that compares boxes, in this process: exit code, standard output and error."""
    run = invoke_recipe(check_parity.main, folder)
    return run.exit_code, run.stdout, run.stderr


def back(cut: int, size: int, grown: int) -> int:
    return floor(Fraction(cut) * size / grown)


def plain_cells(width: int, height: int, across: int, down: int) -> list[tuple]:
    """Equal cells of an image enlarged so that they are whole, scaled back."""
    grown = ceil(width / across) * across, ceil(height / down) * down
    xs = [back(number * grown[0] // across, width, grown[0]) for number in range(across + 1)]
    ys = [back(number * grown[1] // down, height, grown[1]) for number in range(down + 1)]
    return [(xs[x], ys[y], xs[x + 1], ys[y + 1]) for y in range(down) for x in range(across)]


def plain_cc(width: int, height: int, cells: int) -> list[tuple]:
    """ImageRAG's shrinking windows, with the loop that the facts describe: on while the last kernel was two units or more."""
    units = ceil(width / cells), ceil(height / cells)
    grown = [unit * cells for unit in units]
    levels = {1: [(0, 0, width, height)]}
    number, kernels = 1, grown
    while kernels[0] >= 2 * units[0]:
        number += 1
        kernels = [side - (number - 1) * unit for side, unit in zip(grown, units, strict=True)]
        spans = []
        for size, side, unit, kernel in zip((width, height), grown, units, kernels, strict=True):
            stride, start, row = floor(kernel - Fraction(kernel - unit, unit)), 0, []
            while start + kernel < side:
                row.append(start)
                start += stride
            row.append(side - kernel)
            spans.append([(back(x, size, side), back(x + kernel, size, side)) for x in row])
        boxes = [(x1, y1, x2, y2) for y1, y2 in spans[1] for x1, x2 in spans[0]]
        levels[len(boxes)] = boxes
    return [box for boxes in levels.values() for box in boxes]


def kept(boxes: list[tuple]) -> list[list[int]]:
    return [list(box) for box in dict.fromkeys(boxes) if box[0] < box[2] and box[1] < box[3]]


def test_the_boxes_of_the_release():
    code, out, _ = check(FOLDER)
    result = json.loads(out)
    assert code == 0 and result["passed"]
    for plans in result["boxes"].values():
        assert {name: plan["equal"] for name, plan in plans.items()} == dict.fromkeys(plans, True)


@given(sides, sides)
@example(921, 777)
@example(1, 1)
def test_divisions_of_the_release_equal_plain_loops(width, height):
    assert make_plan("vit", width, height, side=44).boxes().tolist() == kept(
        plain_cells(width, height, ceil(width / 44), ceil(height / 44))
    )
    cells = [box for n in range(1, 11) for box in plain_cells(width, height, n, n)]
    assert make_plan("grid", width, height).boxes().tolist() == kept(cells)
    for count in CC:
        assert make_plan("cc", width, height, cells=count).boxes().tolist() == kept(plain_cc(width, height, count))


@pytest.mark.parametrize("size", [(1000, 800), (921, 777), (11500, 7360), (100_000, 100_000)])
def test_counts_of_the_facts(size):
    def counts(name):
        plan = make_plan(name, *size)
        assert len(plan) == sum(level.stop - level.start for level in plan.levels)
        return [level.stop - level.start for level in plan.levels]

    assert counts("cc-20") == CC[20] and sum(CC[20]) == 661
    assert counts("cc-10") == CC[10] and sum(CC[10]) == 166
    assert counts("grid-10") == [n * n for n in range(1, 11)] and len(make_plan("grid", *size)) == 385
    assert counts("vit-448") == [ceil(size[0] / 448) * ceil(size[1] / 448)]


def test_counts_of_a_hundred_thousand_pixels():
    assert len(make_plan("vit", 100_000, 100_000)) == 50_176
    plan = make_plan("pyramid", 100_000, 100_000, side=448, overlap=0)
    assert len(plan) == 66_906 and len(plan.levels) == 9  # the facts' pyramid of 448-pixel tiles


@given(st.sampled_from(NAMES), sides, sides)
@example("pyramid-8-0.5", 500, 3)
@example("pyramid-288-0.25", 289, 288)
def test_boxes_are_inside_distinct_and_cover(name, width, height):
    plan = make_plan(name, width, height)
    boxes = plan.boxes()
    assert boxes.dtype == np.int64 and boxes.shape == (len(plan), 4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] < boxes[:, 2:]).all() and (boxes[:, 2:] <= (width, height)).all()
    assert len(set(map(tuple, boxes.tolist()))) == len(boxes)
    whole = name.startswith(("vit", "pyramid"))
    for level in plan.levels if whole else [plan.levels[0]]:
        seen = np.zeros((height, width), bool)
        for x1, y1, x2, y2 in boxes[level.start : level.stop]:
            seen[y1:y2, x1:x2] = True
        assert seen.all()
    assert plan.levels[0].start == 0 and plan.levels[-1].stop == len(plan)
    assert all(one.stop == next.start for one, next in zip(plan.levels, plan.levels[1:], strict=False))


@given(st.integers(1, 12), st.sampled_from([0, 0.25, 0.5, 0.85]), sides, sides)
@example(8, 0.25, 8, 8)
def test_a_pyramid_is_square_and_goes_down_to_native_detail(side, overlap, width, height):
    plan = make_plan("pyramid", width, height, side=side, overlap=overlap)
    boxes = plan.boxes()
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert boxes[0].tolist() == [0, 0, width, height] and plan.levels[0].stop == 1
    assert (len(plan) == 1) == (max(width, height) <= side)
    for level in plan.levels[1:]:
        here = sizes[level.start : level.stop]
        assert (here == np.minimum((width, height), side * (level.scale if level.scale > 1 else 1))).all()
        native = level == plan.levels[-1]
        assert native or (here == side * level.scale).all()  # square
        steps = np.diff(np.unique(boxes[level.start : level.stop, 0]))
        assert (steps <= here[0, 0]).all()  # no gap
        if len(steps) > 1 and native:  # the last step may be shorter
            assert abs(steps[0] - max(1, side * (1 - overlap))) <= 0.5
    if len(plan.levels) > 1:
        assert max(sizes[-1]) == side or plan.levels[-1].scale < 1


@given(st.integers(1, 12), st.sampled_from([0, 0.25, 0.5, 0.85]), st.integers(1, 120), st.integers(1, 120), st.data())
def test_children_show_what_their_parents_show(side, overlap, width, height, data):
    plan = make_plan("pyramid", width, height, side=side, overlap=overlap)
    boxes, levels = plan.boxes(), plan.level_of()
    some = np.array(data.draw(st.lists(st.integers(0, len(plan) - 1), min_size=1, max_size=3)))
    children = plan.children(some)
    assert (np.diff(children) > 0).all() and children.dtype == np.int64
    assert set(levels[children]) <= set(levels[some] + 1)
    for parent in some:
        x1, y1, x2, y2 = boxes[parent]
        finer = np.flatnonzero(levels == levels[parent] + 1)
        middles = boxes[finer, :2] + boxes[finer, 2:]
        inside = finer[(middles >= (2 * x1, 2 * y1)).all(1) & (middles < (2 * x2, 2 * y2)).all(1)]
        assert set(inside) <= set(children)
        if len(finer):
            seen = np.zeros((height, width), bool)
            for child in children[levels[children] == levels[parent] + 1]:
                a1, b1, a2, b2 = boxes[child]
                assert a1 < x2 and a2 > x1 and b1 < y2 and b2 > y1 or len(some) > 1  # none that shows nothing of it
                seen[b1:b2, a1:a2] = True
            assert seen[y1:y2, x1:x2].all()
    for level, finer in zip(plan.levels, plan.levels[1:], strict=False):
        assert (plan.children(np.arange(level.start, level.stop)) == np.arange(finer.start, finer.stop)).all()
    last = plan.levels[-1]
    assert len(plan.children(slice(last.start, last.stop))) == 0


@given(st.sampled_from(NAMES), sides, sides, st.data())
def test_some_boxes_are_those_of_all(name, width, height, data):
    plan = make_plan(name, width, height)
    numbers = np.array(data.draw(st.lists(st.integers(0, len(plan) - 1), max_size=20)), np.int64)
    assert (plan.boxes(numbers) == plan.boxes()[numbers]).all()
    assert (plan.boxes(slice(1, None, 3)) == plan.boxes()[1::3]).all()
    levels = plan.level_of(numbers)
    assert all(plan.levels[level].start <= n < plan.levels[level].stop for n, level in zip(numbers, levels, strict=True))


@pytest.mark.parametrize("name", ["vit", "grid", "cc", "pyramid"])
def test_a_huge_image_takes_no_memory(name):
    tracemalloc.start()
    plan = make_plan(name, 100_000, 100_000)
    plan.boxes([0, len(plan) - 1]), plan.level_of([len(plan) // 2])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_everything(name):
    plan = make_plan(name, 700, 400)
    assert plan.name == name
    kind, *values = name.split("-")
    options = dict(zip({"grid": ["cells"], "cc": ["cells"]}.get(kind, ["side", "overlap"]), map(float, values), strict=False))
    assert make_plan(kind, 700, 400, **options).name == name


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tiles", {}, "there is no plan 'tiles', but vit, grid, cc, pyramid"),
        ("vit-0", {}, "side must be at least 1"),
        ("grid-0", {}, "cells must be 1 to 100"),
        ("cc-101", {}, "cells must be 1 to 100"),
        ("pyramid-288-0.95", {}, "overlap must be 0 to 0.9"),
        ("pyramid-288", {}, "takes side and overlap, as in pyramid-288-0.25"),
        ("pyramid-a-b", {}, "must be numbers"),
        ("vit--448", {}, "vit-448"),
        ("vit", {"overlap": 0.5}, "takes side"),
        ("grid", {"cells": "many"}, "must be numbers"),
        ("vit-448", {"side": 448}, "takes side"),
    ],
)
def test_names_that_are_no_plan(name, options, said):
    with pytest.raises(EvcapError, match=said) as error:
        make_plan(name, 100, 100, **options)
    assert "\n" not in str(error.value)


def test_misuse():
    plan = make_plan("vit", 1000, 1000)
    with pytest.raises(IndexError, match="of a plan with 9"):
        plan.boxes([9])
    with pytest.raises(ValueError, match="no children"):
        plan.children([0])
    with pytest.raises(EvcapError, match="0 x 5 pixels has no tiles"):
        make_plan("pyramid", 0, 5)


def test_check_parity_tells_where_boxes_differ(tmp_path):
    boxes = kept(plain_cells(1000, 800, 3, 2))
    (tmp_path / "boxes.json").write_text(json.dumps({"1000x800": {"vit_448": boxes}}))
    code, out, _ = check(tmp_path)
    assert code == 0 and json.loads(out)["passed"]
    boxes[4][2] += 1
    (tmp_path / "boxes.json").write_text(json.dumps({"1000x800": {"vit_448": boxes[:5]}}))
    code, out, _ = check(tmp_path)
    difference = json.loads(out)["boxes"]["1000x800"]["vit_448"]
    assert code == 1 and not json.loads(out)["passed"]
    assert difference["count"] == 6 and difference["recorded_count"] == 5
    assert difference["first_difference"] == {"number": 4, "ours": [333, 400, 666, 800], "recorded": [333, 400, 667, 800]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "boxes.json is damaged"),
        ("[1]", "does not map sizes"),
        ('{"a": {}}', "sizes"),
        ('{"9x9": {"x_1": []}}', "no plan"),
    ],
)
def test_a_damaged_recording_of_boxes(content, said, tmp_path):
    (tmp_path / "boxes.json").write_text(content)
    code, out, err = check(tmp_path)
    assert code == 1 and not out
    assert said in err and len(err.strip().splitlines()) == 1


def test_a_changed_recording_is_noticed(tmp_path):
    shutil.copy(FOLDER / "boxes.json", tmp_path)
    content = json.loads((tmp_path / "boxes.json").read_text())
    plans = next(iter(content.values()))
    plans["cc_20"][5:7] = plans["cc_20"][6:4:-1]  # another order
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    code, out, _ = check(tmp_path)
    assert code == 1 and out.count('"equal": false') == 1
