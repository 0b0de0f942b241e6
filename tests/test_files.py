"""Files that appear whole or not at all, and reading that does not wait or swell."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from evcap.files import encoded, read_regular, replacing, write_text


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_threads_that_write_one_file_leave_one_of_their_texts(tmp_path):
    path, texts = tmp_path / "a.txt", [letter * 100_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(path, text), texts * 4))
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["a.txt"]


def test_new_files_have_the_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_links_and_devices_stay_what_they_are(tmp_path):
    write_text(tmp_path / "a", "old")
    (tmp_path / "link").symlink_to("a")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == "new"
    write_text(os.devnull, "nothing")
    assert not os.path.isfile(os.devnull)


def test_every_string_can_be_written():
    assert encoded("\u00e9\udcff") == b"\xc3\xa9\xff"  # a byte of a file name, as Python keeps it
    assert encoded("a \ud83d b \udcff") == b"a ? b \xff"  # half of an emoji


def test_reading_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(b"12345")
    assert read_regular(tmp_path / "long", 5) == b"12345"
    refused = [(tmp_path / "pipe", 9, "not a regular"), (tmp_path / "long", 4, "5 bytes"), ("/dev/zero", 9, "not a regular")]
    for path, most, line in refused:
        with pytest.raises(OSError) as caught:
            read_regular(path, most)
        assert line in caught.value.strerror
