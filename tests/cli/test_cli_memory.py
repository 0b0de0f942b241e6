"""`evcap memory` on memories of three entries, and on the shipped one with the shipped model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_tools import ENCODER, FakeCaptioner, jsonl, run
from memory_tools import make, replaced
from places import REPOSITORY

import evcap


@pytest.fixture
def memory(photos, fake) -> str:
    """A memory of three entries in folder m, whose keys are colours, with the fake captioner's encoder."""
    from evcap.memory.memory import VisualNameMemory

    keys = np.eye(3, dtype=np.float32)
    built = VisualNameMemory.build(keys, ["dog", "cat", "dog"], ["s"] * 3, ["a.jpg", "b.jpg", "c.jpg"], ENCODER)
    built.save("m")
    return "m"


@pytest.fixture
def loads_memory(monkeypatch):
    from evcap.memory.memory import VisualNameMemory

    monkeypatch.setattr(evcap, "load", lambda preset, memory: FakeCaptioner(VisualNameMemory.open(memory, ENCODER)))


def alone(*words: str) -> subprocess.CompletedProcess:
    """A command in its own process, which says at the end whether torch was imported."""
    edit = f"app({list(words)}, standalone_mode=False)"
    program = f"import sys; from evcap.cli.app import app; {edit}; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


def listed(folder) -> dict[str, int]:
    lines = run("memory", "list", "--memory", folder, "--format", "jsonl").stdout
    return {row["name"]: row["entries"] for row in jsonl(lines)}


def test_memory_info_and_list(memory):
    text = run("memory", "info", "--memory", memory).stdout
    assert "3 entries of 2 names" in text and ENCODER in text and "3 x float" in text
    assert run("memory", "list", "--memory", memory).stdout == "     1  cat\n     2  dog\n"


def test_memory_edits(memory):
    run("memory", "rename", "dog", "Wolf!", "--memory", memory)
    assert listed(memory) == {"cat": 1, "wolf": 2}
    run("memory", "export", "copy", "--memory", memory)
    assert "2 entries" in run("memory", "remove", "wolf", "--memory", memory).stdout
    assert listed(memory) == {"cat": 1} and listed("copy") == {"cat": 1, "wolf": 2}
    run("memory", "merge", "copy", "--memory", memory)
    assert listed(memory)["wolf"] == 2
    run("memory", "export", "bare", "--memory", memory, "--empty")
    assert listed("bare") == {}
    assert "0 entries" in run("memory", "info", "--memory", "bare").stdout


def test_memory_index(photos, fake):
    from evcap.memory.memory import VisualNameMemory

    draw = np.random.default_rng(0)
    names, images = [f"n{i % 50}" for i in range(1200)], [f"{i}.jpg" for i in range(1200)]
    VisualNameMemory.build(draw.normal(size=(1200, 16)), names, ["s"] * 1200, images, ENCODER).save("m")
    assert "index     flat\n" in run("memory", "info", "--memory", "m").stdout
    shown = alone("memory", "index", "--kind", "hnsw", "--memory", "m")
    assert shown.stdout == "m now has index hnsw over 1,200 entries of 50 names\nFalse\n" and shown.stderr == ""
    assert "index     hnsw, efSearch 2048, chosen\n" in run("memory", "info", "--memory", "m").stdout
    run("memory", "remove", "n1", "--memory", "m")
    run("memory", "export", "copy", "--memory", "m")
    for folder in ("m", "copy"):
        assert "index     hnsw" in run("memory", "info", "--memory", folder).stdout and listed(folder)["n2"] == 24
    next(Path("m").glob("index-*")).write_bytes(b"torn")
    assert "`evcap memory index --memory m`" in run("memory", "info", "--memory", "m", code=1).stderr
    assert "index flat over 1,176" in run("memory", "index", "--memory", "m").stdout  # as its size would have it
    assert listed("m")["n2"] == 24
    assert "is only read" in run("memory", "index", code=1).stderr
    run("memory", "index", "--kind", "tree", "--memory", "m", code=2)


def test_an_index_of_few_entries_is_refused(memory):
    told = run("memory", "index", "--kind", "ivf", "--memory", memory, code=1).stderr
    assert told == "evcap: an index of kind ivf needs 1,000 entries, the memory holds 3: choose flat\n"
    assert listed(memory) == {"cat": 1, "dog": 2}


def test_memory_add(memory, loads_memory, photos):
    run("memory", "add", "--name", "Fire_Hydrant", *photos[:2], "--memory", memory)
    assert listed(memory) == {"cat": 1, "dog": 2, "fire hydrant": 2}
    for name in ("sea gull", "crab"):
        Path("things", name).mkdir(parents=True)
    os.rename("p2.png", "things/sea gull/x.png")
    os.rename("p3.png", "things/crab/x.png")
    result = run("memory", "add", "--from-folder", "things", "--memory", memory)
    assert "added 2 entries of 2 names" in result.stdout
    assert listed(memory) == {"cat": 1, "crab": 1, "dog": 2, "fire hydrant": 2, "sea gull": 1}
    assert "sea gull (user, things/sea gull/x.png)" in run("memory", "search", "p0.png", "--memory", memory).stdout


def test_memory_add_leaves_out_folders_without_pictures(memory, loads_memory, photos):
    for name in ("bare", "crab"):
        Path("things", name).mkdir(parents=True)
    os.rename("p3.png", "things/crab/x.png")
    result = run("memory", "add", "--from-folder", "things", "--memory", memory)
    assert "added 1 entry of 1 name" in result.stdout and listed(memory)["crab"] == 1
    assert "things: folders without images are left out: bare" in result.stderr
    os.remove("things/crab/x.png")
    assert "none of its 2 folders" in run("memory", "add", "--from-folder", "things", "--memory", memory, code=1).stderr


def test_what_is_there_already_is_passed_by(memory, loads_memory, photos):
    result = run("memory", "add", "--name", "bird", *photos[:2], "--memory", memory)
    assert "added 2 entries of 1 name; " in result.stdout
    result = run("memory", "add", "--name", "Bird", *photos[:3], "--memory", memory)
    assert "added 1 entry of 1 name, passed by 2 that were there already; " in result.stdout and listed(memory)["bird"] == 3
    result = run("memory", "merge", memory, "--memory", memory)
    assert result.stdout.startswith("merged 0 entries, passed by 6 that were there already; ")
    assert listed(memory) == {"bird": 3, "cat": 1, "dog": 2}


HARMFUL = "red\x1b[31m \u202epanda\x07\u200b"


def test_no_name_takes_control_of_the_terminal(memory, loads_memory, photos):
    """Whatever way a name takes, also that of a memory whose file holds it."""
    Path("things", HARMFUL).mkdir(parents=True)
    os.rename("p3.png", Path("things", HARMFUL, "x.png"))
    told = [
        run("memory", "rename", "dog", HARMFUL, "--memory", memory),
        run("memory", "add", "--name", HARMFUL, photos[0], "--memory", memory),
        run("memory", "add", "--from-folder", "things", "--memory", memory),
        run("memory", "remove", f"no {HARMFUL}", "--memory", memory, code=1),
    ]
    assert listed(memory) == {"cat": 1, "red [31m panda": 4}
    columns = {"names": [HARMFUL, "cafe\u0301", "cat"], "sources": ["s"] * 3, "images": ["a.jpg"] * 3}
    make().save("handed")
    replaced(Path("handed"), "names", json.dumps(columns).encode())
    told += [run("memory", "list", "--memory", "handed"), run("memory", "remove", "caf\u00e9", "--memory", "handed")]
    told += [run("memory", "rename", HARMFUL, "wolf", "--memory", "handed")]
    assert listed(Path("handed")) == {"cat": 1, "wolf": 1}
    assert not {letter for result in told for letter in result.output} & set("\x1b\x07\u202e\u200b")


def test_memory_search_puts_the_nearest_first(memory, loads_memory, photos):
    lines = run("memory", "search", "p1.png", "--memory", memory, "--limit", 2).stdout.splitlines()
    assert lines[1] == "     1.000  cat (s, b.jpg)" and len(lines) == 3


def test_memory_add_keeps_the_good_pictures_of_a_mixed_batch(memory, loads_memory, photos):
    Path("bad.jpg").write_text("no")
    result = run("memory", "add", "--name", "bird", "p0.png", "bad.jpg", "p1.png", "--memory", memory, code=1)
    assert listed(memory)["bird"] == 2 and "1 of 3 images failed" in result.stderr


def test_edits_do_not_even_import_torch(memory):
    shown = alone("memory", "rename", "dog", "wolf", "--memory", "m")
    assert shown.stdout == "renamed 2 entries; m now holds 3 entries of 2 names\nFalse\n"


def test_edits_need_no_model(memory, monkeypatch):
    monkeypatch.setattr(evcap, "load", lambda *args: pytest.fail("a model was loaded"))
    run("memory", "info")
    run("memory", "list")
    run("memory", "export", "mine")
    run("memory", "remove", next(iter(listed("mine"))), "--memory", "mine")


# The shipped model


def test_a_renamed_memory_changes_names_at_once(captioner, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(evcap, "load", lambda preset, memory: _with_memory(captioner, memory))
    bus = next(path for path in examples if path.stem == "bus")
    mine = tmp_path / "mine"
    run("memory", "export", mine)
    shipped = captioner.memory
    try:
        assert " bus\n" in run("names", bus, "--memory", mine).stdout
        run("memory", "rename", "bus", "dragon", "--memory", mine)
        table = run("names", bus, "--memory", mine, "--plot", tmp_path / "plot.png").stdout
        assert " dragon\n" in table and " bus\n" not in table
        run("memory", "add", "--name", "qbuzz", bus, "--memory", mine)
        assert "1.000  qbuzz" in run("memory", "search", bus, "--memory", mine).stdout
    finally:
        captioner.memory = shipped


def _with_memory(captioner, folder):
    from evcap.memory.memory import VisualNameMemory

    captioner.memory = VisualNameMemory.open(folder, captioner.encoder_fingerprint)
    return captioner
