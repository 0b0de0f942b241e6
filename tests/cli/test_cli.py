"""The command line on good input: formats, files, resuming, sidecars, names; the shipped model at the end."""

import csv
import functools
import io
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import COLOURS, jsonl, run, said
from PIL import Image
from places import REPOSITORY

import evcap
from evcap.cli.result_file import ResultWriter
from evcap.cli.results import Format, Result

HERE = REPOSITORY / "tests"
FAKE = str(HERE / "cli_tools.py")


def test_help_and_version_are_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime  # not the clock: other programs may keep us waiting
    python = {"capture_output": True, "text": True, "cwd": HERE.parent}
    shown = subprocess.run([sys.executable, "-m", "evcap.cli.app", "--help"], **python)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1 and "caption" in shown.stdout
    assert run("--version").stdout == f"evcap {evcap.__version__}\n"
    imported = "import sys, evcap.cli.app; print([m for m in ('torch', 'PIL', 'numpy', 'rich') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", imported], **python)
    assert shown.stdout == "[]\n"


def test_jsonl_lines_hold_exactly_the_promised_fields(fake, photos):
    lines = jsonl(run("caption", *photos, "--format", "jsonl", "--num-captions", 2).stdout)
    names = [{"name": "sky", "similarity": 0.6123}, {"name": "sea", "similarity": 0.5}]
    for file, colour, line in zip(photos, COLOURS, lines, strict=True):
        captions = [said(colour), "again"]
        assert line == {"file": file, "caption": captions[0], "captions": captions, "names": names, "error": None}
        assert list(line) == ["file", "caption", "captions", "names", "error"]


def test_csv_has_a_header_and_text_can_be_read(fake, photos):
    rows = list(csv.reader(io.StringIO(run("caption", ".", "--format", "csv").stdout)))
    assert rows[0] == ["file", "caption", "captions", "names", "error"]
    assert rows[1] == ["p0.png", "colour 250 0 0", "colour 250 0 0", "sky 0.61; sea 0.50", ""]
    assert len(rows) == 6
    text = run("caption", "p1.png", "--num-captions", 2).stdout
    assert text == "p1.png\n  colour 0 250 0\n  again\n  names: sky 0.61, sea 0.50\n"


def test_results_and_messages_go_to_different_streams(fake, photos):
    result = run("caption", "p0.png", "--format", "jsonl")
    assert len(result.stdout.splitlines()) == 1 and "1 of 1 images" in result.stderr
    assert run("caption", "p0.png", "--quiet").stderr == ""


def test_batches_keep_the_order(fake, photos):
    lines = jsonl(run("caption", *reversed(photos), "--batch-size", 2, "--format", "jsonl").stdout)
    assert [line["file"] for line in lines] == photos[::-1]
    assert [line["caption"] for line in lines] == [said(colour) for colour in COLOURS[::-1]]
    assert fake.calls == [2, 2, 1]


def test_file_names_that_are_not_utf8(fake, photos):
    name = os.fsdecode(b"caf\xe9.png")
    os.rename("p0.png", name)
    assert jsonl(run("caption", name, "--format", "jsonl").stdout)[0]["file"] == name
    assert os.fsencode(name) in run("caption", name).stdout_bytes
    run("caption", ".", "--format", "csv", "--output", "out.csv")
    run("caption", ".", "--format", "csv", "--output", "out.csv", "--resume")
    assert sum(fake.calls) == 1 + 1 + 5


# --output and --resume


def test_output_takes_its_name_only_when_all_is_done(fake, photos, monkeypatch):
    Path("out.jsonl").write_text("an older result\n")
    seen = []
    monkeypatch.setattr(fake, "_colours", lambda images: seen.append(Path("out.jsonl").read_text()) or COLOURS[:1])
    run("caption", *photos, "--output", "out.jsonl", "--format", "jsonl", "--batch-size", 1)
    assert seen == ["an older result\n"] * 5
    assert [line["file"] for line in jsonl(Path("out.jsonl").read_text())] == photos
    assert sorted(os.listdir()) == ["out.jsonl", *photos]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_resume_skips_what_the_output_holds(fake, photos, form):
    run("caption", *photos[:2], "--output", "out", "--format", form)
    result = run("caption", *photos, "--output", "out", "--format", form, "--resume")
    assert fake.calls == [2, 3] and "2 of 5 images were finished before" in result.stderr
    whole = run("caption", *photos, "--format", form).stdout
    assert Path("out").read_text() == whole


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_resume_tolerates_a_torn_last_line_wherever_it_is_torn(fake, photos, form):
    whole = run("caption", *photos, "--format", form, "--quiet").stdout
    end = whole.rindex("p4.png") + 40
    for cut in range(whole.index("p2.png"), end, 7):
        Path("out.part").write_text(whole[:cut])
        run("caption", *photos, "--output", "out", "--format", form, "--resume", "--quiet")
        assert Path("out").read_text() == whole


def test_resume_tries_failed_pictures_again_and_keeps_one_line_each(fake, photos):
    Path("p1.png").rename("away")
    Path("p1.png").touch()
    run("caption", *photos, "--output", "out.jsonl", "--format", "jsonl", code=1)
    assert [line["error"] is None for line in jsonl(Path("out.jsonl").read_text())] == [True, False, True, True, True]
    Path("away").rename("p1.png")
    run("caption", *photos, "--output", "out.jsonl", "--format", "jsonl", "--resume")
    assert fake.calls == [4, 1]
    lines = jsonl(Path("out.jsonl").read_text())
    assert sorted(line["file"] for line in lines) == photos and not any(line["error"] for line in lines)


def test_without_resume_all_is_done_again(fake, photos):
    for _ in range(2):
        run("caption", *photos, "--output", "out.jsonl", "--format", "jsonl")
    assert fake.calls == [5, 5] and len(jsonl(Path("out.jsonl").read_text())) == 5


@pytest.mark.slow
@pytest.mark.parametrize("signal_number, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_goes_on_with_resume(photos, signal_number, code):
    command = [sys.executable, FAKE, "caption", *photos, "--batch-size", "1"]
    command += ["--format", "jsonl", "--output", "out.jsonl"]
    Path("out.jsonl").write_text("an older result\n")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "SECONDS_A_BATCH": "0.7"}
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # started with "&", a shell's child would not
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    part = Path("out.jsonl.part")
    deadline = time.monotonic() + 300
    while not (part.exists() and part.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal_number)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == code
    assert Path("out.jsonl").read_text() == "an older result\n"
    done = jsonl(part.read_text())
    assert 2 <= len(done) < 5
    if signal_number == signal.SIGINT:
        assert f"interrupted after {len(done)} of 5 images" in messages and "--resume" in messages
        assert "Traceback" not in messages
    environment["SECONDS_A_BATCH"] = "0"
    again = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and f"{len(done)} of 5 images were finished before" in again.stderr
    lines = jsonl(Path("out.jsonl").read_text())
    assert [(line["file"], line["caption"]) for line in lines] == list(zip(photos, map(said, COLOURS), strict=True))
    assert not part.exists()


def test_a_reader_that_stops_early_is_no_error(photos):
    command = f"{sys.executable} {FAKE} caption . --batch-size 1 --quiet | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "SECONDS_A_BATCH": "0.2"}
    result = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert result.stdout == "p0.png\n" and result.stderr == ""


def test_every_kind_of_result_survives_the_way_to_a_file_and_back(tmp_path):
    odd = [
        Result('a "quoted", comma.jpg', ["one, two", 'three "four"'], [("x;y", 0.25)]),
        Result("new\nline.jpg", ["ends in space "], []),
        Result("failed.jpg", error="failed.jpg: no"),
    ]
    for form in (Format.jsonl, Format.csv):
        path = tmp_path / form
        writer = ResultWriter(path, form)
        for result in odd:
            writer.write(result)
        writer.complete()
        before = path.read_text()
        again = ResultWriter(path, form, resume=True)
        assert again.finished == {os.path.abspath(odd[0].file), os.path.abspath(odd[1].file)}
        again.write(odd[2])
        again.complete()
        assert path.read_text() == before


# --sidecar


def test_sidecars(fake, photos):
    run("caption", *photos, "--sidecar", "--num-captions", 2)
    assert [Path(f"p{i}.txt").read_text() for i in range(5)] == [f"{said(colour)}\nagain\n" for colour in COLOURS]
    assert sorted(os.listdir()) == sorted([*photos, *[f"p{i}.txt" for i in range(5)]])
    Path("p2.txt").unlink()
    run("caption", *photos, "--sidecar", "--resume", "--quiet")
    assert fake.calls == [5, 1] and Path("p2.txt").read_text() == f"{said(COLOURS[2])}\n"


def test_a_sidecar_never_overwrites_a_picture_or_another_sidecar(fake, photos):
    Image.new("RGB", (20, 20)).save("p0.bmp")
    os.rename("p1.png", "p1.txt")
    before = Path("p1.txt").read_bytes()
    result = run("caption", "p0.png", "p0.bmp", "p1.txt", "--sidecar", "--format", "jsonl", code=1)
    assert Path("p0.txt").read_text() == f"{said(COLOURS[0])}\n" and Path("p1.txt").read_bytes() == before
    assert [bool(line["error"]) for line in jsonl(result.stdout)] == [False, True, True]
    assert all(line["caption"] for line in jsonl(result.stdout)), "the captions themselves are fine"


# evcap names


def test_names_table(fake, photos):
    table = run("names", *photos[:2]).stdout
    assert table.count("sky") == 2 and "p1.png\n  similarity  query  name\n       0.610      3  sky\n" in table


def test_names_plot(fake, photos):
    Image.new("RGB", (300, 200), "teal").save("wide.png")
    run("names", "wide.png", "--plot", "out.png")
    with Image.open("out.png") as drawn:
        assert drawn.format == "PNG" and drawn.width > 1000
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 24)}
    assert {(0, 128, 128), (0xE1, 0x57, 0x59), (0x4E, 0x79, 0xA7)} <= colours, "the photo and both bars"
    assert "one" in run("names", *photos, "--plot", "out.png", code=1).stderr


# The shipped model


def test_the_shipped_model_through_the_real_command(captioner, examples, tmp_path):
    """A process of its own prints what the Python interface says."""
    command = [sys.executable, "-m", "evcap.cli.app", "caption", *map(str, examples[:2]), "--format", "jsonl"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, timeout=300)
    assert shown.returncode == 0, shown.stderr
    lines = jsonl(shown.stdout)
    expected = captioner.caption(examples[:2])
    assert [line["caption"] for line in lines] == [caption.caption for caption in expected]
    assert [line["names"][0]["name"] for line in lines] == [caption.names[0].name for caption in expected]
    assert all(4 <= len(line["caption"].split()) <= 30 for line in lines)


def test_captions_do_not_depend_on_the_batch(captioner, examples):
    photos = examples[:3]
    together = [c.caption for c in captioner.caption(photos, batch_size=len(photos), max_length=10)]
    assert together == [captioner.caption(photo, max_length=10).caption for photo in photos]
