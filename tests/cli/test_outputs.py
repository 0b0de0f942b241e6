"""Nothing that is there is lost: outputs that name inputs, images or each other, and lines of other runs."""

import fcntl
import os
from pathlib import Path

import pytest
from cli_tools import COLOURS, ENCODER, jsonl, run, said
from PIL import Image

from evcap.cli.result_file import ResultWriter
from evcap.cli.results import Format, Result

OUT = ["--output", "out.jsonl", "--format", "jsonl", "--quiet"]


def refused(*args) -> str:
    """The only line of a command that is refused, which must leave every file as it was."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = run(*args, code=1)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert result.stderr.count("\n") == 1 and not result.stdout
    return result.stderr


@pytest.fixture
def spellings(photos) -> list[str]:
    """Names of p0.png: its own, a detour, absolute, a link and a hard link."""
    Path("folder").mkdir()
    os.symlink("p0.png", "link.png")
    os.link("p0.png", "hard.png")
    return ["p0.png", "folder/../p0.png", os.path.abspath("p0.png"), "link.png", "hard.png"]


@pytest.mark.parametrize("command", [["caption", "--output"], ["names", "--output"], ["names", "--plot"]])
def test_an_output_that_is_an_input_is_refused(fake, spellings, command):
    for spelling in spellings:
        assert f"{command[1]} {spelling} is" in refused(command[0], "p0.png", command[1], spelling)
    assert fake.calls == []


@pytest.mark.parametrize("option", ["--overlay", "--evidence"])
def test_answers_do_not_go_into_the_raster(spellings, option):
    for spelling in spellings:
        assert "a file of this run" in refused("ask", "p0.png", "any ships?", option, spelling)


def test_pictures_that_are_no_input_stay_too(fake, photos):
    Image.new("RGB", (9, 9)).save("photo", "JPEG")
    Image.new("L", (2, 2)).save("plain.ppm")
    for victim in ("p1.png", "photo", "plain.ppm"):
        assert "no earlier result" in refused("caption", "p0.png", "--output", victim)
        assert "no earlier result" in refused("names", "p0.png", "--plot", victim)
    Path("notes.txt").write_text("mine")
    assert "no earlier result" in refused("names", "p0.png", "--plot", "notes.txt")
    assert "no earlier result" in refused("ask", "p0.png", "any ships?", "--evidence", "notes.txt")


def test_an_earlier_drawing_is_replaced(fake, photos):
    run("names", "p0.png", "--plot", "plot.png")
    before = Path("plot.png").read_bytes()
    run("names", "p1.png", "--plot", "plot.png")
    assert Path("plot.png").read_bytes() != before


def test_two_outputs_are_two_files(fake, photos):
    assert "the file of" in refused("ask", "p0.png", "any ships?", "--evidence", "x.json", "--overlay", "./x.json")
    assert "the file of" in refused("names", "p0.png", "--output", "x", "--plot", "folder/../x")
    assert "a file of this run" in refused("caption", "p0.png", "--sidecar", "--output", "p0.txt")


def test_folders_that_cannot_be_told_before_the_model_is_loaded(fake, photos):
    Path("file").touch()
    assert "not a folder" in refused("ask", "p0.png", "any ships?", "--index", "file")
    assert "not a folder" in refused("ask", "p0.png", "any ships?", "--index", "file/index")
    assert "not a folder" in refused("index", "p0.png", "--index", "file")
    assert "not a folder" in refused("memory", "export", "file/copy")
    assert "there is no folder" in refused("ask", "p0.png", "any ships?", "--evidence", "no/such.json")
    for command in (["caption", "p0.png"], ["names", "p0.png"], ["ask", "p0.png", "any ships?"]):
        assert "nowhere does not exist" in refused(*command, "--memory", "nowhere")
        assert "no preset 'big'" in refused(*command, "--preset", "big")
    assert "--min-length 9 is more than --max-length 5" in refused(
        "caption", "p0.png", "--min-length", 9, "--max-length", 5, "--output", "x"
    )
    assert fake.calls == []


# the same output again


def test_finished_lines_are_not_thrown_away(fake, photos):
    run("caption", *photos[:2], *OUT)
    os.rename("out.jsonl", "out.jsonl.part")
    assert "--resume" in refused("caption", *photos, *OUT)
    assert "delete it" in refused("caption", *photos, "--output", "out.jsonl")
    run("caption", *photos, *OUT, "--resume")
    assert [line["file"] for line in jsonl(Path("out.jsonl").read_text())] == photos and fake.calls == [2, 3]


def test_a_run_that_never_begins_leaves_nothing(fake, photos, monkeypatch):
    def stop(images):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "_colours", stop)
    run("caption", *photos, *OUT, code=130)
    assert sorted(os.listdir()) == photos
    run("caption", *photos, "--output", "out.csv", "--format", "csv", "--quiet", code=130)
    assert sorted(os.listdir()) == photos


def test_one_run_writes_at_a_time(fake, photos):
    run("caption", "p0.png", *OUT)
    os.rename("out.jsonl", "out.jsonl.part")
    with open("out.jsonl.part") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for more in ([], ["--resume"]):
            assert "another run is writing out.jsonl.part" in refused("caption", "p1.png", *OUT, *more)
    run("caption", "p1.png", *OUT, "--resume")


def test_the_lock_holds_while_a_resumed_run_writes(fake, photos):
    run("caption", *photos[:2], *OUT)
    with ResultWriter(Path("out.jsonl"), Format.jsonl, resume=True) as writer:
        writer.write(Result("p4.png", ["written meanwhile"]))
        assert "another run is writing" in refused("caption", *photos, *OUT, "--resume")
        writer.complete()
    run("caption", *photos, *OUT, "--resume")
    assert [line["file"] for line in jsonl(Path("out.jsonl").read_text())] == [*photos[:2], "p4.png", *photos[2:4]]


@pytest.fixture
def interrupted(fake, photos, monkeypatch):
    """out.jsonl.part with its settings, of a run that was stopped after two of five images."""
    real = fake._colours

    def stops(images):
        if len(fake.calls) == 2:
            raise KeyboardInterrupt
        return real(images)

    monkeypatch.setattr(fake, "_colours", stops)
    run("caption", *photos, *OUT, "--batch-size", 1, code=130)
    monkeypatch.setattr(fake, "_colours", real)
    assert len(jsonl(Path("out.jsonl.part").read_text())) == 2
    return photos


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--beams", 2], "beams (5, now 2)"),
        (["--num-captions", 2], "num-captions (1, now 2)"),
        (["--max-length", 9], "max-length"),
        (["--prefix", "a photo: "], "prefix"),
        (["--memory", "other"], "memory ("),
        (["--preset", "mine.yaml"], "preset ("),
        (["--format", "metadata"], "not a line with file_name, text"),
        (["--format", "csv"], "columns"),
    ],
)
def test_resuming_with_other_settings_is_refused(interrupted, more, named):
    import numpy as np

    from evcap.config import PRESET_FOLDER
    from evcap.memory.memory import VisualNameMemory

    VisualNameMemory.build(np.eye(2, dtype=np.float32), ["a", "b"], ["s"] * 2, ["a", "b"], ENCODER).save("other")
    text = (PRESET_FOLDER / "embedded.yaml").read_text().replace("../assets", str(PRESET_FOLDER.parent / "assets"))
    Path("mine.yaml").write_text(text + "unit_queries: true\n" if "unit_queries" not in text else text + "\nvocab_size: 9\n")
    assert named in refused("caption", *interrupted, *OUT, "--resume", *more)


def test_settings_that_are_the_same_in_other_words(interrupted):
    memory = Path("copy")
    run("memory", "export", memory)  # its content is that of the shipped one
    run("caption", *interrupted, *OUT, "--resume", "--beams", 5, "--batch-size", 3, "--memory", memory)
    assert [line["file"] for line in jsonl(Path("out.jsonl").read_text())] == interrupted
    assert not Path("out.jsonl.part.json").exists()


def test_resuming_with_other_spellings_writes_each_line_once(interrupted):
    others = ["./p0.png", os.path.abspath("p1.png"), "p2.png", "./p3.png", os.path.abspath("p4.png")]
    run("caption", *others, *OUT, "--resume")
    lines = jsonl(Path("out.jsonl").read_text())
    assert [os.path.basename(line["file"]) for line in lines] == interrupted
    Path("folder").mkdir()
    os.rename("out.jsonl", "out.jsonl.part")
    Path("out.jsonl.part.json").write_text('{"folder": "/elsewhere"}')
    assert "as seen from /elsewhere" in refused("caption", *others, *OUT, "--resume")


def test_damaged_settings_are_one_line(interrupted):
    for text in ("[", "[]", "[" * 100_000, "{}"):
        Path("out.jsonl.part.json").write_text(text[:99_999])
        assert "is damaged" in refused("caption", *interrupted, *OUT, "--resume")


def test_a_link_is_written_through(fake, photos):
    Path("folder").mkdir()
    os.symlink("folder/out.jsonl", "out.jsonl")
    run("caption", *photos, *OUT)
    assert Path("out.jsonl").is_symlink() and os.listdir("folder") == ["out.jsonl"]


# sidecars


@pytest.mark.parametrize(
    ("existing", "text"),
    [
        ("keep", "by hand"),
        ("overwrite", f"{said(COLOURS[0])}\n"),
        ("append", f"by hand\n{said(COLOURS[0])}\n"),
        ("prepend", f"{said(COLOURS[0])}\nby hand"),
    ],
)
def test_what_becomes_of_texts_that_are_there(fake, photos, existing, text):
    Path("p0.txt").write_text("by hand")
    command = ["caption", *photos, "--sidecar", "--existing", existing]
    told = run(*command, "--quiet").stderr
    assert told == ("evcap: 1 text was there before and was kept; --existing overwrite, append or prepend changes that\n"
                    if existing == "keep" else "")  # fmt: skip
    for more in ([], ["--resume"]):
        assert Path("p0.txt").read_text() == text, "never twice"
        assert Path("p1.txt").read_text() == f"{said(COLOURS[1])}\n"
        run(*command, *more)


def test_kept_is_the_default(fake, photos):
    Path("p0.txt").write_text("by hand")
    run("caption", *photos, "--sidecar")
    assert Path("p0.txt").read_text() == "by hand"


def test_a_sidecar_that_is_no_text_stays(fake, photos):
    Path("p0.txt").write_bytes(b"\x00\x01")
    for existing in ("overwrite", "append", "prepend"):
        told = run("caption", "p0.png", "--sidecar", "--existing", existing, code=1).stderr
        assert "p0.txt exists and is no text" in told and Path("p0.txt").read_bytes() == b"\x00\x01"


def test_extension_prefix_and_suffix(fake, photos):
    around = ["--prefix", "sks, ", "--suffix", ", photo"]
    (line,) = jsonl(run("caption", "p0.png", "--sidecar", "--extension", ".caption", *around, "--format", "jsonl").stdout)
    assert line["caption"] == f"sks, {said(COLOURS[0])}, photo" == Path("p0.caption").read_text().strip()
    for bad in (".jpg", "caption", ".", ".a/b"):
        assert "--extension" in refused("caption", "p0.png", "--sidecar", "--extension", bad)
    assert "name one of them" in refused("caption", "p0.png", "--existing", "append")
    assert "name it too" in refused("caption", "p0.png", "--extension", ".caption")


# what trainers read, and lists of paths


def test_metadata_is_what_imagefolder_reads(fake, photos):
    for name in ("deep", "bad"):
        Path("set", name).mkdir(parents=True)
    os.rename("p0.png", "set/p0.png")
    os.rename("p1.png", "set/deep/p1.png")
    Path("set/bad/x.png").touch()
    command = ["caption", "set", "--format", "metadata", "--output", "set/metadata.jsonl"]
    assert "0 bytes" in run(*command, code=1).stderr
    rows = jsonl(Path("set/metadata.jsonl").read_text())
    assert rows == [
        {"file_name": "deep/p1.png", "text": said(COLOURS[1])},
        {"file_name": "p0.png", "text": said(COLOURS[0])},
    ]
    os.rename("p2.png", "set/bad/x.png")
    run(*command, "--resume")
    assert len(jsonl(Path("set/metadata.jsonl").read_text())) == 3 and fake.calls == [2, 1]
    assert "tells of images in" in refused("caption", "p3.png", "--format", "metadata", "--output", "set/metadata.jsonl")


@pytest.mark.parametrize("end", ["\n", "\0", "\r\n"])
def test_a_list_of_paths_from_standard_input(fake, photos, end):
    os.rename("p1.png", "with space.png")
    shown = run("caption", "-", "p2.png", "--format", "jsonl", stdin=end.join(["p0.png", "with space.png", ""]))
    assert [line["file"] for line in jsonl(shown.stdout)] == ["p0.png", "with space.png", "p2.png"]
    assert "lists no paths" in run("names", "-", code=1, stdin="\n").stderr


# evcap names


def test_names_as_jsonl_and_csv(fake, photos):
    run("names", *photos[:2], "--format", "jsonl", "--output", "names.jsonl")
    run("names", *photos, "--format", "jsonl", "--output", "names.jsonl", "--resume")
    assert fake.calls == [2, 3]
    names = [{"name": "sky", "similarity": 0.61, "query": 3}, {"name": "fire hydrant", "similarity": 0.5, "query": 7}]
    rows = jsonl(Path("names.jsonl").read_text())
    assert rows == [{"file": photo, "names": names, "error": None} for photo in photos]
    table = run("names", "p0.png", "--format", "csv").stdout
    assert table == "file,names,queries,error\np0.png,sky 0.61; fire hydrant 0.50,3; 7,\n"
    assert "cannot resume" in refused("caption", *photos, "--output", "names.jsonl", "--format", "jsonl", "--resume")
