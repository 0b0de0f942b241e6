"""Compare this package with a recording of the public EVCap release run on small random weights, or of ImageRAG's boxes.

    python eval/check_parity.py FOLDER

What a recording holds is told in evcap/parity. Of EVCap, prints one JSON object: the largest difference of each tensor, each
element's relative to 1 + |recorded value|, and whether the names and the beams are equal; exits with 0 only if all tensors are
within 1e-5 and names and beams are equal. Of ImageRAG, for each plan whether its boxes are equal, in the same order, and the
first difference; exits with 0 only if all are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command
from evcap.errors import EvcapError
from evcap.parity.evcap import compare
from evcap.parity.imagerag import compare_boxes


def main(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="The recording.")],
) -> None:
    """Compare evcap with a recording of the EVCap or the ImageRAG release; prints one JSON object."""
    boxes = (folder / "boxes.json").exists()
    try:
        result = compare_boxes(folder) if boxes else compare(folder)
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


if __name__ == "__main__":
    typer.run(command(main))
