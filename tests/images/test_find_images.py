"""Which files a list of paths, folders and patterns means."""

import os
import subprocess
import unicodedata
from pathlib import Path

import pytest
from cli_tools import run
from PIL import Image

from evcap.errors import EvcapError
from evcap.images import opening as images
from evcap.images.opening import find_images


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    names = "b.jpg a.PNG notes.txt .hidden.jpg sub/c.webp sub/.git/d.jpg sub/deep/e.jpeg [1].jpg"
    for name in names.split():
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / name).touch()
    (tmp_path / "t" / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    return Path("t")


def found(*paths) -> list[str]:
    return [file.as_posix() for file in find_images(paths)]


def test_folders_are_searched_in_order(tree):
    everything = ["t/[1].jpg", "t/a.PNG", "t/b.jpg", "t/sub/c.webp", "t/sub/deep/e.jpeg"]
    assert found("t") == everything
    assert found(tree) == everything
    assert found("t/sub", "t/b.jpg", "t/a.PNG") == ["t/sub/c.webp", "t/sub/deep/e.jpeg", "t/b.jpg", "t/a.PNG"]


def test_each_file_comes_once(tree):
    assert found("t/b.jpg", "./t/b.jpg", Path("t/b.jpg").absolute(), "t") == [
        "t/b.jpg",
        "t/[1].jpg",
        "t/a.PNG",
        "t/sub/c.webp",
        "t/sub/deep/e.jpeg",
    ]


def test_patterns(tree):
    assert found("t/*.jpg") == ["t/[1].jpg", "t/b.jpg"]
    assert found("t/**/*.jp*g") == ["t/[1].jpg", "t/b.jpg", "t/sub/deep/e.jpeg"]
    assert found("t/*")[-2:] == ["t/sub/c.webp", "t/sub/deep/e.jpeg"] and "t/notes.txt" not in found("t/*")
    assert found("t/[1].jpg") == ["t/[1].jpg"], "a file of that very name comes before the pattern"
    assert found("t/[ab].jpg") == ["t/b.jpg"]


def test_a_named_file_is_kept_whatever_it_is(tree):
    assert found("t/notes.txt", "t/.hidden.jpg") == ["t/notes.txt", "t/.hidden.jpg"]
    assert found("t/missing.jpg", "t/none", "t/b.jpg") == ["t/missing.jpg", "t/none", "t/b.jpg"]


@pytest.mark.parametrize("path, words", [("t/none", "no images in t/none"), ("t/x*", "no file"), ("t/x", "no file")])
def test_nothing_at_all_is_an_error(tree, path, words):
    with pytest.raises(EvcapError, match=words) as caught:
        find_images([path])
    assert "\n" not in str(caught.value)
    with pytest.raises(EvcapError):
        find_images([])


def test_what_is_left_out_is_told_in_one_line(tree, monkeypatch):
    monkeypatch.setattr(images, "reads_heif", lambda: False)
    for name in ("IMG_1.HEIC", "sub/IMG_2.heic", "sub/scan.jxl", "raw.NEF", "__MACOSX/x.jpg", "._a.jpg", "sub/._b.heic"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()
    (tree / "link").symlink_to(tree.absolute() / "sub")
    (tree / "loop").symlink_to("..")
    told: list[str] = []
    files = find_images(["t"], report=told.append)
    assert [file.as_posix() for file in files] == ["t/[1].jpg", "t/a.PNG", "t/b.jpg", "t/sub/c.webp", "t/sub/deep/e.jpeg"]
    assert told == [
        "left out: images of kinds that are not read here (2 .heic, 1 .jxl, 1 .nef) and 2 linked folders (name what is to be "
        "followed); HEIC is read with pip install 'evcap[heic]'"
    ]
    assert find_images(["t/link"], report=told.append) == [Path("t/link/c.webp"), Path("t/link/deep/e.jpeg")], "a named link"
    monkeypatch.setattr(images, "reads_heif", lambda: True)
    assert Path("t/IMG_1.HEIC") in find_images(["t"], report=told.append) and ".heic" not in told[-1]
    find_images(["t/a.PNG", "t/none", "t/b.jpg"], report=told.append)
    find_images(["t/sub"], (".jpeg",), told.append)
    assert len(told) == 4 and "1 .webp" in told[-1], "what others read is left out here"


def test_the_commands_tell_what_is_left_out(tree, fake):
    (tree / "IMG_1.HIF").touch()
    (tree / "scan.jxl").touch()
    Image.new("RGB", (9, 9)).save(tree / "a.PNG")
    for command in (["caption"], ["names"]):
        assert "evcap: left out: images of kinds" in run(*command, "t", code=1).stderr


def test_folders_of_any_depth(tmp_path, monkeypatch, request):
    depth = 1500  # more than Python's stack, fewer characters than a path may have
    monkeypatch.chdir(tmp_path)
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", tmp_path / "t"], check=True))  # shutil.rmtree is recursive
    os.mkdir("t")
    here = os.open("t", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("p.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert [str(file) for file in find_images(["t"])] == ["t/" + "d/" * depth + "p.png"]
    with pytest.raises(EvcapError, match="too deep for a pattern"):
        find_images(["t/**/*.png"])


@pytest.mark.parametrize("stored, typed", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_that_are_characters_of_their_own(tmp_path, monkeypatch, stored, typed):
    monkeypatch.chdir(tmp_path)
    name = unicodedata.normalize(stored, "Fotos für Zoë/à.jpg")
    Path(name).parent.mkdir()
    Path(name).touch()
    for asked in ("Fotos für Zoë/à.jpg", "Fotos für Zoë", "Fotos für Zoë/à*.jpg"):
        assert [str(file) for file in find_images([unicodedata.normalize(typed, asked)])] == [name]
    absolute = tmp_path / unicodedata.normalize(typed, "Fotos für Zoë/à.jpg")
    assert find_images([absolute]) == [tmp_path / name]
