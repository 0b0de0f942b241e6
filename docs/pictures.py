"""Draws the README's pictures of a memory edit and of failures, from the example photos with the shipped model.

python docs/pictures.py
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

import evcap
from evcap.memory.memory import VisualNameMemory
from evcap.plots.png import METADATA

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
EDITED = ("motorcyclist.jpg", {"bike": "dragon", "dirt bike": "dragon", "motorcycle": "dragon", "snowmobile": "dragon"})
# what people see in them is at odds with what is said
FAILURES = {
    "seaplane.jpg": "A seaplane, not a boat: the memory has no entry of that name.",
    "riders.jpg": "Two people ride two horses: it seldom counts.",
    "skateboarder.jpg": "He rides the skateboard, and does not stand with it.",
}


def panel(figure: Figure, place: int, of: int, photo: Path, above: str, below: str) -> None:
    axes = figure.add_subplot(1, of, place)
    axes.imshow(Image.open(photo))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(textwrap.fill(above, 42), fontsize=11, loc="left", fontweight="bold", parse_math=False)
    axes.set_xlabel(
        "\n".join(textwrap.fill(line, 52) for line in below.splitlines()), fontsize=9.5, loc="left", parse_math=False
    )


def names(caption) -> str:
    return "names, similarity: " + ", ".join(f"{name.name} {name.similarity:.2f}" for name in caption.names)


def main() -> None:
    captioner = evcap.load()
    photo, renames = EXAMPLES / EDITED[0], EDITED[1]
    figure = Figure(figsize=(10, 4.6), layout="constrained", dpi=100)
    before = captioner.caption(photo)
    panel(figure, 1, 2, photo, f"Shipped memory: {before.caption}", names(before))
    shipped = captioner.memory
    captioner.memory = VisualNameMemory(shipped.keys, shipped.names, shipped.sources, shipped.images, shipped.encoder)
    for old, new in renames.items():
        captioner.memory.rename(old, new)
    after = captioner.caption(photo)
    panel(figure, 2, 2, photo, f"Renamed memory: {after.caption}", names(after))
    figure.savefig(HERE / "memory-edit.png", metadata=METADATA)
    captioner.memory = shipped
    figure = Figure(figsize=(13, 4.4), layout="constrained", dpi=100)
    for place, (name, why) in enumerate(FAILURES.items(), 1):
        said = captioner.caption(EXAMPLES / name)
        panel(figure, place, len(FAILURES), EXAMPLES / name, said.caption, f"{why}\n{names(said)}")
    figure.savefig(HERE / "failures.png", metadata=METADATA)
    print(f"{photo.name}: {before.caption!r} -> {after.caption!r}")


if __name__ == "__main__":
    main()
