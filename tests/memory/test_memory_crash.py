"""Killed and competing writers: the memory is always whole, and is what one of them announced."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from places import REPOSITORY

from evcap.memory.index_kind import IndexKind
from evcap.memory.memory import VisualNameMemory

KILLS = 50
WRITER = REPOSITORY / "tests" / "memory_writer.py"


def writer(folder) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(WRITER.parent.parent)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, str(WRITER), str(folder)], text=True, bufsize=1, env=environment, **pipes)


def several(folder, count: int = 200) -> None:
    """A memory of 100 kB, so that a save takes a while."""
    keys = np.random.default_rng(0).normal(size=(count, 256)).astype(np.float16)
    names = [f"old{i}" for i in range(count)]
    VisualNameMemory.build(keys, names, ["s"] * count, [f"{i}.jpg" for i in range(count)], "e").save(folder)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_the_old_memory_or_the_new_one(tmp_path):
    draw, files, process = random.Random(0), set(), writer(tmp_path)
    several(tmp_path)
    known = VisualNameMemory.open(tmp_path).names
    for kill in range(KILLS):
        process.stdin.write(f"kill{kill}. 1000000\n")
        child, first = int(process.stdout.readline()), process.stdout.readline()  # the first save begins
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        *_, last = [first, *iter(process.stdout.readline, "gone\n")]
        files.add(len(list(tmp_path.iterdir())))
        names = VisualNameMemory.open(tmp_path, "e", verify=True).names
        assert names in [known + [f"kill{kill}.{i}" for i in range(count)] for count in (int(last), int(last) + 1)]
        known = names
    assert process.communicate()[1] == ""
    assert len(files) > 1  # some kills fell into the middle of a save and left its files
    memory = VisualNameMemory.open(tmp_path)
    memory.remove("old0")
    memory.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4  # which the next save cleans up
    assert memory.search(memory.keys[None, :2])[0]


@pytest.mark.slow
def test_a_writer_killed_while_it_saves_an_index(tmp_path):
    """A tenth of the entries is soon added: some saves build the index anew, others keep its file, and any may be killed."""
    draw, indexes, process = random.Random(0), set(), writer(tmp_path)
    several(tmp_path, 1000)
    memory = VisualNameMemory.open(tmp_path)
    memory.reindex(IndexKind.hnsw)
    memory.add(memory.keys[:98], [f"old{i}" for i in range(98)], ["s"] * 98, ["x.jpg"] * 98)
    memory.save(tmp_path)
    known = memory.names
    for kill in range(60):
        process.stdin.write(f"kill{kill}. 1000000\n")
        child, first = int(process.stdout.readline()), process.stdout.readline()
        time.sleep(draw.uniform(0, 0.6))
        os.kill(child, signal.SIGKILL)
        *_, last = [first, *iter(process.stdout.readline, "gone\n")]
        memory = VisualNameMemory.open(tmp_path, "e", verify=True)
        assert memory.names in [known + [f"kill{kill}.{i}" for i in range(count)] for count in (int(last), int(last) + 1)]
        known = memory.names
        assert memory.kind == "hnsw" and memory.search(memory.keys[None, -1:].astype(np.float32))[0][0].similarity > 0.99
        indexes.add(json.loads((tmp_path / "manifest.json").read_text())["indexed"])
        if kill >= 12 and len(indexes) > 1:
            break
    assert process.communicate()[1] == ""
    assert len(indexes) > 1
    memory.rename("old0", "new")
    memory.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5  # .lock, manifest, keys, names, index: what kills left is gone


def test_two_writers_at_once_lose_nothing(tmp_path):
    several(tmp_path, 3)
    with writer(tmp_path) as one, writer(tmp_path) as two:
        for process, name in ((one, "a"), (two, "b")):
            process.stdin.write(f"{name} 20\n")
            process.stdin.close()
        while one.poll() is None or two.poll() is None:
            VisualNameMemory.open(tmp_path, verify=True)  # a reader beside them always finds it whole
        assert one.stderr.read() + two.stderr.read() == ""
    names = VisualNameMemory.open(tmp_path, verify=True).names
    assert sorted(names) == sorted(["old0", "old1", "old2", *(f"{name}{i}" for name in "ab" for i in range(20))])
    assert [n for n in names if n[0] == "a"] == [f"a{i}" for i in range(20)]
