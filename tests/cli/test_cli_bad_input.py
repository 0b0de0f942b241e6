"""Bad input at the command line: one clear line each, exit code not zero, and the rest of the batch is done."""

import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_tools import COLOURS, jsonl, run, said
from PIL import Image
from places import REPOSITORY

import evcap
from evcap.config import PRESET_FOLDER
from evcap.errors import EvcapError
from evcap.images import opening as images

FAKE = str(REPOSITORY / "tests" / "cli_tools.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def failing(*args) -> str:
    """The only line that a command says before it gives up with exit code 1."""
    result = run(*args, code=1)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("evcap: ") and result.stdout == "", result.output
    return lines[0]


def bomb(path: str) -> None:
    """A GIF whose header promises 30,000 x 30,000 pixels."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, 30_000, 30_000, 0) + b"\x08\0;"
    Path(path).write_bytes(b"GIF89a" + struct.pack("<HHBBB", 30_000, 30_000, 0xF7, 0, 0) + bytes(768) + frame)


@pytest.fixture
def wrecks(photos) -> dict[str, str]:
    """Files that are no usable image, with a word of the line each must give."""
    Path("text.jpg").write_text("I only pretend")
    Path("empty.png").touch()
    bomb("bomb.gif")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save("whole.jpg")
    data = Path("whole.jpg").read_bytes()
    Path("whole.jpg").unlink()
    Path("cut.jpg").write_bytes(data[: len(data) // 2])
    Path("none").mkdir()
    return {
        "text.jpg": "not an image",
        "empty.png": "0 bytes",
        "bomb.gif": "megapixels",
        "cut.jpg": "cut short",
        "none": "a folder, in which no image",
        "missing.jpg": "no such file",
    }


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_wrecks_cost_no_neighbour_its_caption(fake, photos, wrecks, batch_size):
    files = [file for pair in zip(photos, wrecks, strict=False) for file in pair] + ["missing.jpg"]
    result = run("caption", *files, "--format", "jsonl", "--batch-size", batch_size, "--quiet", code=1)
    lines = {line["file"]: line for line in jsonl(result.stdout)}
    assert list(lines) == files
    for file, colour in zip(photos, COLOURS, strict=True):
        assert lines[file]["caption"] == said(colour) and lines[file]["error"] is None
    messages = result.stderr.splitlines()
    assert messages[0] == f"evcap: 6 of {len(files)} images failed:" and len(messages) == 7
    for (file, words), message in zip(wrecks.items(), messages[1:], strict=True):
        assert message.startswith(f"  {file}: ") and words in message
        assert lines[file] == {"file": file, "caption": None, "captions": [], "names": [], "error": message.strip()}


@pytest.mark.parametrize("command", ["caption", "names"])
def test_one_wreck_alone(fake, wrecks, command):
    for file, words in wrecks.items():
        assert words.split()[-1] in run(command, file, code=1).stderr
    assert fake.calls == [], "no model is loaded for images that cannot be opened"


def test_no_permission(fake, photos, monkeypatch):
    Path("p1.png").chmod(0)
    if os.geteuid() == 0:  # root reads everything, so play the refusal
        real = images.Image.open

        def refuse(path, **kwargs):
            if Path(path).name == "p1.png":
                raise PermissionError(13, "Permission denied")
            return real(path, **kwargs)

        monkeypatch.setattr(images.Image, "open", refuse)
    result = run("caption", *photos, "--format", "jsonl", code=1)
    assert "p1.png: no permission" in result.stderr
    assert [line["error"] is None for line in jsonl(result.stdout)] == [True, False, True, True, True]


def test_a_picture_that_the_model_chokes_on_fails_alone(fake, photos):
    Image.new("RGB", (13, 20)).save("p9.png")
    result = run("caption", "p9.png", *photos, "--format", "csv", code=1)
    assert "  p9.png: RuntimeError: the model choked" in result.stderr
    assert result.stdout.count("colour") == 10 and result.stdout.count("\n") == 7


def test_nothing_to_do(fake, photos):
    Path("none").mkdir()
    assert "no images in none" in failing("caption", "none")
    assert "there is no file x*.jpg" in failing("caption", "x*.jpg")
    assert "Missing argument" in run("caption", code=2).stderr


def test_a_full_disk(fake, photos):
    assert "cannot write /dev/full: No space left" in failing("caption", "p0.png", "--output", "/dev/full", "--quiet")
    with open("/dev/full", "w") as full:
        command = [sys.executable, FAKE, "caption", "p0.png"]
        shown = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert shown.returncode == 1 and "Traceback" not in shown.stderr and "Exception" not in shown.stderr
    assert "evcap: cannot read or write standard output: No space left" in shown.stderr


def test_a_disk_that_fills_up_leaves_the_finished_lines(photos):
    """The file may grow to 1024 bytes, which a line of 60 captions fills by half."""
    command = f"{sys.executable} {FAKE} caption . --format jsonl --output out.jsonl --num-captions 60 --quiet"
    shown = subprocess.run(["bash", "-c", f"ulimit -f 1; {command}"], capture_output=True, text=True, env=ENVIRONMENT)
    assert shown.returncode == 1 and shown.stderr == "evcap: cannot write out.jsonl.part: File too large\n"
    run_again = [sys.executable, FAKE, *command.split()[2:], "--resume"]
    assert subprocess.run(run_again, env=ENVIRONMENT, capture_output=True).returncode == 0
    lines = jsonl(Path("out.jsonl").read_text())
    assert [line["file"] for line in lines] == photos
    assert 60 in {len(line["captions"]) for line in lines}, "what the first run finished was kept"


def test_places_that_cannot_be_written(fake, photos):
    nowhere = "/proc/out.jsonl"  # not even root may make a file there
    assert f"cannot write {nowhere}" in failing("caption", "p0.png", "--output", nowhere)
    assert "cannot write no/such/out" in failing("caption", "p0.png", "--output", "no/such/out")
    Path("folder").mkdir()
    assert "cannot write folder: Is a directory" in failing("caption", "p0.png", "--output", "folder")
    assert fake.calls == [], "found out before the model is loaded"
    assert f"cannot write {nowhere}" in run("names", "p0.png", "--plot", nowhere, code=1).stderr


def test_sidecars_that_cannot_be_written_fail_alone(fake, photos):
    Path("p1.txt").mkdir()
    result = run("caption", *photos, "--sidecar", "--format", "jsonl", code=1)
    assert "p1.png: cannot write its sidecar p1.txt: Is a directory" in result.stderr
    assert sorted(file.name for file in Path().glob("*.txt")) == [f"p{i}.txt" for i in range(5)]
    assert not list(Path().glob(".evcap*")), "no temporary file stays"


def test_what_cannot_be_resumed(fake, photos):
    assert "--format jsonl or csv" in failing("caption", "p0.png", "--output", "out", "--resume")
    assert "--output a file" in failing("caption", "p0.png", "--format", "jsonl", "--resume")
    Path("notes").write_text("my notes\nof today\n")
    for form, word in (("jsonl", "line 1"), ("csv", "columns")):
        assert word in failing("caption", "p0.png", "--output", "notes", "--format", form, "--resume")
    assert Path("notes").read_text() == "my notes\nof today\n" and not Path("notes.part").exists()


def test_a_mistake_found_while_loading_is_one_line(photos, monkeypatch):
    def load(preset, memory, generator=None):
        raise EvcapError("the trained tensors are damaged; get a fresh copy")

    monkeypatch.setattr(evcap, "load", load)
    for command in ("caption", "names"):
        lines = run(command, *photos, code=1).stderr.splitlines()
        assert lines[-1] == "evcap: the trained tensors are damaged; get a fresh copy"


def test_presets(photos):
    assert "unknown key 'colour'" in failing("caption", "p0.png", "--quiet", "--preset", _preset("colour: blue"))
    assert "not valid YAML" in failing("caption", "p0.png", "--quiet", "--preset", _preset("x: ["))
    assert "no preset 'big'" in failing("caption", "p0.png", "--quiet", "--preset", "big")
    assert "cannot read my.yml" in failing("caption", "p0.png", "--quiet", "--preset", "my.yml")


def _preset(more: str, assets: str = "../assets/embedded") -> str:
    """The shipped preset with one more line, as a file."""
    text = (PRESET_FOLDER / "embedded.yaml").read_text()
    Path("mine.yaml").write_text(text.replace("../assets/embedded", assets) + f"\n{more}\n")
    return "mine.yaml"


# Memories


def test_the_shipped_memory_is_only_read(photos):
    shipped = PRESET_FOLDER.parent / "assets" / "embedded" / "memory"
    for where in ([], ["--memory", shipped]):
        for edit in (["remove", "dog"], ["rename", "dog", "cat"], ["merge", "m"], ["add", "--name", "dog", "p0.png"]):
            assert "evcap memory export FOLDER" in failing("memory", *edit, *where)


@pytest.fixture
def memory(photos) -> str:
    from evcap.memory.memory import VisualNameMemory

    VisualNameMemory.build(np.eye(2, dtype=np.float32), ["dog", "cat"], ["s"] * 2, ["a", "b"], "mine").save("m")
    return "m"


def test_edits_that_make_no_sense(memory, photos):
    assert "did you mean dog?" in failing("memory", "remove", "dogg", "--memory", memory)
    assert "evcap memory list" in failing("memory", "rename", "zebra", "horse", "--memory", memory)
    assert "nothing that can be said" in failing("memory", "rename", "dog", "!!", "--memory", memory)
    assert "nowhere does not exist" in failing("memory", "remove", "dog", "--memory", "nowhere")
    assert "exists" in failing("memory", "export", memory)
    assert "--name NAME IMAGE" in failing("memory", "add", "p0.png", "--memory", memory)
    assert "leave out" in failing("memory", "add", "--name", "x", "--from-folder", ".", "--memory", memory)
    assert "no such folder" in failing("memory", "add", "--from-folder", "nowhere", "--memory", memory)
    Path("flat").mkdir()
    assert "holds no folders" in failing("memory", "add", "--from-folder", "flat", "--memory", memory)


def test_memories_that_cannot_be_opened(memory):
    Path("plain").mkdir()
    assert "plain is not a memory" in failing("memory", "info", "--memory", "plain")
    (keys,) = Path(memory).glob("keys-*.safetensors")
    whole = keys.read_bytes()
    keys.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"{keys} is damaged" in failing("memory", "list", "--memory", memory)
    keys.write_bytes(whole[:20])
    assert str(keys) in failing("memory", "list", "--memory", memory)
    keys.write_bytes(whole)
    run("memory", "list", "--memory", memory)
    manifest = Path(memory, "manifest.json")
    manifest.write_text(manifest.read_text().replace('"entries": 2', '"entries": 3'))
    assert "the manifest says" in failing("memory", "list", "--memory", memory)


def test_memories_of_two_encoders_do_not_merge(memory):
    from evcap.memory.memory import VisualNameMemory

    VisualNameMemory.build(np.eye(2, dtype=np.float32), ["a", "b"], ["s"] * 2, ["a", "b"], "another").save("other")
    assert "encoder" in failing("memory", "merge", "other", "--memory", memory)


# The shipped model


def test_a_memory_of_another_encoder_is_refused(memory):
    assert "encoder" in failing("caption", "p0.png", "--quiet", "--memory", memory)
    assert "encoder" in failing("memory", "add", "--name", "x", "p0.png", "--quiet", "--memory", memory)


def test_damaged_trained_tensors(photos):
    assets = PRESET_FOLDER.parent / "assets" / "embedded"
    Path("assets").mkdir()
    data = (assets / "trained.safetensors").read_bytes()
    Path("assets/trained.safetensors").write_bytes(data[: len(data) // 2])
    preset = _preset("", assets="assets")
    assert "trained.safetensors is damaged" in failing("caption", "p0.png", "--quiet", "--preset", preset)


def test_odd_pictures_get_sensible_captions(captioner, photos, examples, monkeypatch):
    """The same photo as grey with alpha, CMYK, 16 bits, EXIF-rotated and GIF; and a single pixel."""
    monkeypatch.setattr(evcap, "load", lambda preset, memory, generator=None: captioner)
    photo = Image.open(next(path for path in examples if path.stem == "skateboarder"))
    photo.convert("RGBA").save("alpha.png")
    photo.convert("CMYK").save("cmyk.jpg", quality=95)
    photo.save("animated.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save("turned.jpg", exif=exif, quality=95)
    Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257).save("deep.png")
    Image.new("RGB", (1, 1)).save("one.png")
    photo.save("plain.png")
    photo.convert("L").save("grey.png")
    odd = ["plain.png", "alpha.png", "cmyk.jpg", "turned.jpg", "grey.png", "deep.png", "animated.gif", "one.png"]
    lines = jsonl(run("caption", *odd, "--format", "jsonl", "--quiet").stdout)
    plain, alpha, cmyk, turned, grey, deep = (line["caption"] for line in lines[:6])
    assert "skateboard" in plain and "skateboard" in cmyk and "skateboard" in turned
    assert alpha == plain and deep == grey  # the same pixels
    assert all(line["caption"] and line["error"] is None for line in lines)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-"])
def test_streams_that_are_closed(photos, closed):
    """The file of results is written all the same."""
    code = "import cli_tools, evcap; evcap.load = lambda *_, **__: cli_tools.FakeCaptioner()"
    code += "; from evcap.__main__ import main; main()"
    command = f"{sys.executable} -c {shlex.quote(code)} caption p0.png --format jsonl --output out.jsonl {closed}"
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"}
    result = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert jsonl(Path("out.jsonl").read_text())[0]["error"] is None
