"""YAML that would take for ever, all memory, or end in a traceback: one short line at once. The rest is as PyYAML reads it."""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import yaml
from cli_tools import run

from evcap.config import preset_path
from evcap.errors import EvcapError
from evcap.yaml_files import load_yaml, read_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x0: 1, y0: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))
HARMFUL = {
    "deep list": "name: " + "[" * 10**5,
    "deep blocks": "- " * 10**5,
    "deep mapping": "{a: " * 10**5,
    "long integer": "name: x\nimage_queries: " + "9" * 10**5,
    "long octal": "name: x\nimage_queries: 0" + "7" * 10**5,
    "long key": "k" * 10**5 + ": 1",
    "long number as key": "9" * 10**5 + ": 1",
    "laughs": LAUGHS,
    "laughs as a name": LAUGHS + "name: *a11",
    "merges": MERGES,
    "a list in itself": "name: &a [*a]",
    "a key that is a list": "? [a, b]\n: 1",
    "a key that is null": "~: 1",
    "a key that is a nest": LAUGHS + "? *a11\n: 1",
    "twice": "name: a\nname: b",
    "twice within": "vision: {kind: a, kind: b}",
    "no such day": "name: 2020-99-99",
    "no integer": "name: !!int ''",
    "no number": "name: !!float x",
    "no yes or no": "name: !!bool x",
    "no time": "name: !!timestamp x",
    "code": "!!python/object/apply:os.system [true]",
    "another tag": "name: !thing x",
    "too long": "# " + "x" * 2**20,
    "control characters": "name: \x07",
    "tabs": "\tname: x",
    "no anchor": "name: *a",
    "not UTF-8": b"name: \xff",
    "half of UTF-16": b"\xff\xfen\x00a",
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_harmful_preset_is_one_short_line(tmp_path, kind):
    text = HARMFUL[kind]
    path = tmp_path / "p.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "a.png").touch()
    result = run("caption", tmp_path / "a.png", "--preset", path, "--quiet", code=1)
    assert str(path) in result.output
    assert result.output.count("\n") == 1 and len(result.output.replace(str(path), "")) < 1000
    assert "\x07" not in result.output


def test_memory_is_bounded(tmp_path):
    """Aliases and merges that stand for 10^11 items, in a process that may have 1 GB."""
    (tmp_path / "p.yaml").write_text(LAUGHS + MERGES.replace("a", "b"))
    code = f"from evcap.config import load_preset; load_preset({str(tmp_path / 'p.yaml')!r})"
    limit = 2**30
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert child.returncode == 1 and "EvcapError" in child.stderr.splitlines()[-1], child.stderr[-500:]


@pytest.mark.parametrize(
    "text", ["a: &x [1, 2]\nb: *x", "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", "a: 0x1F\nb: 1_000", "3: x", ""]
)
def test_what_is_sound_is_read_as_by_pyyaml(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    assert read_yaml(tmp_path / "p.yaml") == yaml.safe_load(text)


def test_shipped_files_are_read_as_by_pyyaml():
    folder = preset_path("embedded").parents[2]
    files = [path for place in ("evcap/presets", "train", "eval", "memory") for path in (folder / place).rglob("*.yaml")]
    assert len(files) > 10
    for file in files:
        assert read_yaml(file) == yaml.safe_load(file.read_text())


@dataclass(frozen=True)
class Config:
    share: float = 0.5
    count: int = 1
    spelling: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("share: .nan", "share: expected float, found nan"),
        ("share: -.inf", "share: expected float, found -inf"),
        ("share: 0x" + "f" * 400, "share: expected float, found"),
        ("count: 0x" + "f" * 400, "count: expected int, found"),
        ("count: 0x" + "f" * 40000, "count: expected int, found int of great length"),
        ("spelling: {a: 1}", "spelling: 'a': expected str, found 1"),
        ("spelling: {1: a}", "spelling: key: expected str, found 1"),
        ("spelling: [a]", r"spelling: expected dict\[str, str\], found"),
        ("names: [a, [b]]", r"names\[1\]: expected str, found \['b'\]"),
        ("names: " + "x" * 10**5, r"names: expected list\[str\], found 'x"),
        ("7: 1", "unknown key 7. Known keys: share"),
    ],
)
def test_values_that_do_not_fit(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(EvcapError, match=message) as caught:
        load_yaml(tmp_path / "c.yaml", Config)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_preset_that_is_no_file(tmp_path, kind):
    path = tmp_path / "p.yaml"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    (tmp_path / "a.png").touch()
    assert "not a regular file" in run("caption", tmp_path / "a.png", "--preset", path, code=1).output
