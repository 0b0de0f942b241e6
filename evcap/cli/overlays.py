"""Where `evcap region` draws what it says: one image into a file, or each of several into one of a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evcap.cli.outputs import check_folder, check_replaceable
from evcap.cli.results import told_id
from evcap.errors import EvcapError


class Overlays:
    """The drawings of images. file: the only one, unless they go into a folder."""

    def __init__(self, given: str | None, files: Sequence[Path]):
        """given: the option; a folder is there, or ends in /. Raises EvcapError for drawings that would lose something."""
        self.file: Path | None = None
        self._of: dict[Path, Path] = {}
        if given is None:
            return
        if given.endswith(os.sep) or os.path.isdir(given):
            self._of = {file: Path(given) / f"{file.name}.png" for file in files}
            check_folder("--overlay", Path(given))
            self._check(files)
        elif len(files) != 1:
            raise EvcapError(f"--overlay {given} draws one image, {len(files)} were named: name one, or a folder ending in /")
        else:
            self.file = Path(given)
            self._of = {files[0]: self.file}

    @property
    def in_folder(self) -> list[Path]:
        """The drawings that go into a folder."""
        return [] if self.file else list(self._of.values())

    def _check(self, files: Sequence[Path]) -> None:
        owners: dict[str, Path] = {os.path.realpath(file): file for file in files}
        for file, drawing in self._of.items():
            owner = owners.setdefault(os.path.realpath(drawing), file)
            if owner is not file:
                raise EvcapError(
                    f"the drawing of {file} would overwrite {owner} or its drawing, {drawing}; name another folder"
                )
            check_replaceable("--overlay", drawing)

    def draw(self, file: Path | None, picture, results: Sequence, described: Sequence) -> None:
        """Draw one image, if that was wanted and something is said of it. results, described: of the same regions."""
        if file not in self._of or not any(described):
            return
        from evcap.plots.regions import draw_regions

        self._of[file].parent.mkdir(parents=True, exist_ok=True)
        rows = [(told_id(result.id), said) for result, said in zip(results, described, strict=True) if said is not None]
        draw_regions(self._of[file], picture, rows)
