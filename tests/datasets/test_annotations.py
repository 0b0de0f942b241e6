"""Whatever an annotation file holds, it is read or refused in one line that names the file."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evcap.datasets.annotations import read_items, read_lists, refuse, typed
from evcap.errors import EvcapError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
keys = st.sampled_from(["images", "id", "name", "other"])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


def read(path: Path) -> list[tuple[int, str]]:
    return read_items(path, read_lists(path, ("images",)), "images", lambda i: (typed(i, "id", int), typed(i, "name", str)))


def expected(data) -> list[tuple[int, str]] | None:
    """The same by comparison of types, None for what is to be refused."""
    if not (isinstance(data, dict) and isinstance(data.get("images"), list)):
        return None
    rows = [(i.get("id"), i.get("name")) if isinstance(i, dict) else (None, None) for i in data["images"]]
    return rows if all(isinstance(key, int) and isinstance(name, str) for key, name in rows) else None


sound = st.fixed_dictionaries({"images": st.lists(st.fixed_dictionaries({"id": st.integers(), "name": st.text()}))})


@given(data=values | sound | st.fixed_dictionaries({"images": st.lists(values, max_size=3)}))
def test_any_json_is_read_or_refused_in_one_line(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "set.json"
    path.write_text(json.dumps(data))
    if (rows := expected(data)) is not None:
        assert read(path) == rows
    else:
        with pytest.raises(EvcapError, match="set.json") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [{"id": 1, "name": "a"}, {"id": 2}]}', r"images\[1\] has no 'name'"),
        ('{"images": [{"id": "1", "name": "a"}]}', r"images\[0\] cannot be used: id is '1', expected int"),
        ('{"images": {}}', "has no list 'images'"),
        ('{"images": [', "is not JSON"),
        ('{"images": ' + "[" * 10**5, "is not JSON"),
        ("\xff", "is not JSON"),
    ],
)
def test_the_line_tells_the_place(content, message, tmp_path):
    (tmp_path / "set.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(EvcapError, match=message):
        read(tmp_path / "set.json")
    with pytest.raises(EvcapError, match="cannot read .*none.json: No such file"):
        read(tmp_path / "none.json")


def test_what_was_found_is_counted_and_the_first_named():
    refuse(Path("set.json"), "images are missing", [])
    with pytest.raises(EvcapError, match="^set.json: 2 images are missing, the first is a$"):
        refuse(Path("set.json"), "images are missing", ["a", "b"])
