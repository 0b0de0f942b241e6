"""Compare this package with a recording of a public release, run on small random weights: EVCap, ImageRAG's boxes, DynRefer.

    python eval/check_parity.py FOLDER

What a recording holds is told in evcap/parity. Prints one JSON object and exits with 0 only if all that is compared is right.
EVCap: the largest difference of each tensor, each element's relative to 1 + |recorded value|, at most 1e-5, and whether the
names and the beams are equal. ImageRAG: for each plan whether its boxes are equal, in the same order, and the first difference.
DynRefer: for each case the largest difference of every tensor, at most 1e-4, and whether boxes, bits, ids and tags are equal;
`not_covered` names what is recorded and not compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command
from evcap.errors import EvcapError
from evcap.parity.dynrefer.compare import compare_regions
from evcap.parity.evcap import compare
from evcap.parity.imagerag import compare_boxes


def main(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="The recording.")],
) -> None:
    """Compare evcap with a recording of the EVCap, the ImageRAG or the DynRefer release; prints one JSON object."""
    boxes = (folder / "boxes.json").exists()
    try:
        result = compare_boxes(folder) if boxes else compare_models(folder)
    except KeyError as error:
        raise EvcapError(f"{folder} is no recording: nothing in it is called {error}") from None
    except json.JSONDecodeError as error:
        raise EvcapError(f"{folder}/{'boxes' if boxes else 'meta'}.json is damaged: {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        if not boxes:
            raise
        raise EvcapError(f"{folder}/boxes.json does not map sizes such as 1000x800 to plans and boxes: {error}") from None
    print(json.dumps(result))
    raise typer.Exit(0 if result["passed"] else 1)


def compare_models(folder: Path) -> dict:
    """Of EVCap or DynRefer, which meta.json tells apart by its constants."""
    meta = json.loads((folder / "meta.json").read_text())
    return compare_regions(folder) if "roi_sampling_ratio" in meta.get("constants", {}) else compare(folder)


if __name__ == "__main__":
    typer.run(command(main))
