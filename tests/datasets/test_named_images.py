"""Named images from folders and CSV files."""

import pytest
from PIL import Image

from evcap.datasets.named_images import NamedImage, columns, read_named_csv, read_named_folders
from evcap.errors import EvcapError
from evcap.images.opening import ImageError


def picture(path, size=(200, 100)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def test_boxes_are_cut_at_the_edges_and_whole_pictures_may_shrink(tmp_path):
    path = picture(tmp_path / "a.png")
    assert NamedImage("x", path, "s").open().size == (200, 100)
    assert NamedImage("x", path, "s").open(25).size == (50, 25)
    assert NamedImage("x", path, "s", (-4.4, 20.4, 60.6, 300)).open(25).size == (61, 80)  # never shrunk


@pytest.mark.parametrize("box", [(300, 0, 310, 50), (0, -9, 10, -1), (10, 10, 10.3, 50)])
def test_a_box_without_a_pixel_is_told(tmp_path, box):
    with pytest.raises(ImageError, match="a.png: box .* holds none of its 200 x 100 pixels"):
        NamedImage("x", picture(tmp_path / "a.png"), "s", box).open()


def test_folders_name_their_images(tmp_path):
    picture(tmp_path / "Fire_Hydrant" / "1.png")
    picture(tmp_path / "and%2For" / "deep" / "2.png")
    picture(tmp_path / ".hidden" / "3.png")
    (tmp_path / "bare").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "notes.txt").write_text("no image")
    told = []
    items = read_named_folders(tmp_path, "mine", told.append)
    assert [(i.name, i.path.name, i.source) for i in items] == [("fire hydrant", "1.png", "mine"), ("and/or", "2.png", "mine")]
    assert columns(items)[2] == ["Fire_Hydrant/1.png", "and%2For/deep/2.png"]
    assert told == [f"{tmp_path}: folders without images are left out: bare, words"]


def test_folders_without_any_picture_are_an_error(tmp_path):
    with pytest.raises(EvcapError, match="there is no such folder"):
        read_named_folders(tmp_path / "none", "s")
    with pytest.raises(EvcapError, match="holds no folders"):
        read_named_folders(tmp_path, "s")
    (tmp_path / "dog").mkdir()
    with pytest.raises(EvcapError, match="none of its 1 folders holds an image"):
        read_named_folders(tmp_path, "s")


def test_csv_with_and_without_boxes(tmp_path):
    picture(tmp_path / "images" / "a.png")
    rows = 'image,name,x1,y1,x2,y2\nimages/a.png,"Dog, wild",1,2,30,40.5\nimages/a.png,Crèche,,,,\n'
    (tmp_path / "list.csv").write_text(rows, encoding="utf-8-sig")
    first, second = read_named_csv(tmp_path / "list.csv", "list")
    assert first == NamedImage("dog wild", tmp_path / "images/a.png", "list", (1, 2, 30, 40.5), "images/a.png")
    assert (second.name, second.box) == ("crèche", None)
    (tmp_path / "short.csv").write_text("note,name,image\n,dog,images/a.png\n")
    assert [i.name for i in read_named_csv(tmp_path / "short.csv", "s")] == ["dog"]
    for text in ("file,name\nimages/a.png,dog", "file_name;name\nimages/a.png;dog", "file,image,name\nx.png,images/a.png,dog"):
        (tmp_path / "other.csv").write_text(text)
        assert [i.label for i in read_named_csv(tmp_path / "other.csv", "o")] == ["images/a.png"]


BAD = [
    ("", "its first line must name the columns image,name"),
    ("path,name\na.png,dog\n", "its first line must name the columns image,name"),
    ("image,name\na.png,\n", "line 2: the image or its name is missing"),
    ("image,name\na.png\n", "line 2: the image or its name is missing"),
    ("image,name\na.png,!!\n", "'!!' holds nothing that can be said"),
    ("image,name\na.png,dog\nb.png,cat\n", "1 image files are missing, the first is {folder}/b.png"),
    ("image,name,x1,y1,x2,y2\na.png,dog,1,2,3,\n", "line 2: 1,2,3, is no box"),
    ("image,name,x1,y1,x2,y2\na.png,dog,1,2,wide,9\n", "line 2: 1,2,wide,9 is no box"),
    ("image,name,x1,y1,x2,y2\na.png,dog,5,2,3,9\n", "line 2: 5,2,3,9 is no box"),
    ("image,name,x1,y1,x2,y2\na.png,dog,1,nan,3,9\n", "line 2: 1,nan,3,9 is no box"),
    (b"image,name\n\xff\xfe.png,dog\n", "is not a CSV file in UTF-8"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_csv_files_get_one_clear_line(tmp_path, text, message):
    picture(tmp_path / "a.png")
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EvcapError) as caught:
        read_named_csv(path, "s")
    assert message.format(folder=tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(EvcapError, match="cannot read .*none.csv"):
        read_named_csv(tmp_path / "none.csv", "s")
