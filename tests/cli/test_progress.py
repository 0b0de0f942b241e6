"""Progress without a terminal, Ctrl-C while importing, and output in encodings that lack a letter."""

import io
import os
import signal
import subprocess
import sys

import pytest
from cli_tools import COLOURS, run, said
from PIL import Image
from places import REPOSITORY

from evcap.cli import progress
from evcap.cli.result_file import ResultWriter
from evcap.cli.results import Format, Result
from evcap.files import WRITABLE, encoded

HERE = REPOSITORY / "tests"
FAKE = str(HERE / "cli_tools.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent)}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A list whose only number is the time that bars see."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.tqdm, "_time", staticmethod(lambda: now[0]), raising=False)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def steps(clock, file, **more) -> str:
    """What a bar shows of 100 steps of half a second each."""
    with progress.tqdm(total=100, desc="tiles", unit="tile", file=file, **more) as bar:
        for _ in range(100):
            clock[0] += 0.5
            bar.update()
            bar.set_postfix(loss=1.5)
    return file.getvalue()


def test_a_line_every_ten_seconds_where_there_is_no_terminal(clock):
    lines = steps(clock, io.StringIO()).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"tiles: {n} of 100" for n in (20, 40, 60, 80, 100)]
    assert "2.00tile/s" in lines[1] and "loss=1.5" in lines[1] and "\r" not in "".join(lines)


def test_quick_and_quiet_runs_say_nothing(clock):
    assert steps(clock, io.StringIO(), disable=True) == ""
    file = io.StringIO()
    for _ in progress.tqdm(range(100), file=file, disable=None):
        clock[0] += 0.05
    assert file.getvalue() == ""


def test_a_terminal_has_a_bar(clock):
    assert "\r" in steps(clock, Terminal()) and steps(clock, Terminal(), disable=True) == ""


def test_commands_tell_how_far_they_are(fake, photos, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)
    for command in (["caption", *photos], ["names", *photos]):
        lines = run(*command).stderr.splitlines()
        assert any(line.startswith("images: 1 of 5, ") for line in lines) and lines[-1].startswith("5 of 5 images in ")
        assert run(*command, "--quiet").stderr == ""


# Ctrl-C


@pytest.mark.parametrize("module", ["typer", "evcap.cli.results"])
def test_control_c_while_importing_is_one_line(tmp_path, module):
    """It comes in the middle of an import: a finder of modules sends it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{HERE.parent}"}
    listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    shown = subprocess.run(
        [sys.executable, "-m", "evcap", "caption", "x.jpg"], env=environment, capture_output=True, text=True, **listen
    )
    assert (shown.returncode, shown.stdout, shown.stderr) == (130, "", "evcap: interrupted\n")


def test_idle_threads_spin_briefly_unless_somebody_says_how():
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    program = (
        f"import os, evcap.cli.app as a, evcap.__main__ as m; a.app = lambda: print(*map(os.environ.get, {names})); m.main()"
    )
    said = {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "0"}
    for given, expected in ({}, "None 3000"), (said[0], "ACTIVE None"), (said[1], "None 0"):
        environment = {key: value for key, value in ENVIRONMENT.items() if key not in names} | given
        shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert shown.stdout == f"{expected}\n", shown.stderr


# encodings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "encoding"), [("text", "latin-1"), ("text", "ascii"), ("jsonl", "ascii"), ("csv", "cp1252"), ("csv", "utf-8")]
)
def test_output_in_any_encoding(photos, encoding, form):
    names = ["caf\u00e9.png", "\u72ac.png", os.fsdecode(b"caf\xe9.png")]
    for name, colour in zip(names, COLOURS, strict=False):
        Image.new("RGB", (20, 20), colour).save(name)
    Image.new("RGB", (13, 20)).save("\u72ac2.png")  # on which the model chokes
    environment = ENVIRONMENT | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, FAKE, "caption", *names, "\u72ac2.png", "--format", form, "--batch-size", "1"]
    shown = subprocess.run(command, env=environment, capture_output=True)
    assert shown.returncode == 1 and b"Traceback" not in shown.stderr and b"1 of 4 images failed" in shown.stderr
    assert all(said(colour).encode() in shown.stdout for colour in COLOURS[:3])
    if form != "jsonl":
        for name in names:
            assert name.encode(encoding, WRITABLE) in shown.stdout
    assert b"caf\xe9.png" in shown.stdout or form == "jsonl"


def test_other_commands_in_latin_1(photos):
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "latin-1"}

    def evcap(*words) -> bytes:
        shown = subprocess.run([sys.executable, FAKE, *words], env=environment, capture_output=True)
        assert shown.returncode == 0 and b"Traceback" not in shown.stderr, shown.stderr
        return shown.stdout

    evcap("memory", "export", "\u72ac")
    evcap("memory", "rename", "dog", "\u72ac", "--memory", "\u72ac")
    assert b"  ?\n" in evcap("memory", "list", "--memory", "\u72ac")
    assert b"?" in evcap("memory", "info", "--memory", "\u72ac")
    os.rename("p0.png", "\u72ac.png")
    assert b"?.png\n" in evcap("names", "\u72ac.png")
    assert b"--resume" in evcap("caption", "--help")


def test_half_characters_on_their_way_out(tmp_path):
    """A caption that another tool cut in the middle of a surrogate pair, and a file name that is no UTF-8."""
    name = os.fsdecode(b"\xff.jpg")
    for form in Format:
        writer = ResultWriter(tmp_path / form, form)
        writer.write(Result(name, ["a dog \ud83d runs"], [("\udc00", 0.5)]))
        writer.complete()
        written = (tmp_path / form).read_bytes()
        assert (rb"a dog \ud83d runs" if form in ("jsonl", "metadata") else b"a dog ? runs") in written
        assert b"\xff.jpg" in written or form in ("jsonl", "metadata")
    assert encoded("\udc80\ud800\udfff\u72ac") == b"\x80??" + "\u72ac".encode()
