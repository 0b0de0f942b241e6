"""What is left of a row store once its rows are used."""

from evcap.row_store import RowStore, remove_rows


def test_only_rows_are_removed(tmp_path):
    for number, mine in ((0, []), (1, ["thesis.txt", "my.f16"])):
        folder = tmp_path / str(number)
        RowStore(folder, {"a": 1}, 3, (2,))
        for name in mine:
            (folder / name).write_text("mine")
        assert len(list(folder.iterdir())) == 2 + len(mine)
        remove_rows(folder)
        assert {path.name for path in folder.glob("*")} == set(mine)
        assert folder.exists() == bool(mine)
    remove_rows(tmp_path / "none")
