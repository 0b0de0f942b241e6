"""Which files a list of paths, folders and patterns means."""

from pathlib import Path

import pytest

from evcap.errors import EvcapError
from evcap.images import find_images


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


@pytest.mark.parametrize("path, words", [("t/none", "no pictures in t/none"), ("t/x*", "no file"), ("t/x", "no file")])
def test_nothing_at_all_is_an_error(tree, path, words):
    with pytest.raises(EvcapError, match=words) as caught:
        find_images([path])
    assert "\n" not in str(caught.value)
    with pytest.raises(EvcapError):
        find_images([])
