"""Pack the trained tensors of a run for a package: half their size, matrices in 8 bits.

    python train/pack.py runs/embedded-wide-caption/best.safetensors runs/embedded-encoder.safetensors
    python train/pack.py runs/embedded/best.safetensors assets/trained.safetensors --earlier runs/embedded-encoder.safetensors

A memory and a phrase model belong to the encoder that they were made with, to the last bit: pack the encoder before they are
made, and name that file as --earlier when the whole model is packed, whose encoder is then the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command
from evcap.errors import EvcapError
from evcap.weights.shipped import read_trained, write_shipped


def main(
    trained: Annotated[Path, typer.Argument(help="Trained tensors of a run.")],
    output: Annotated[Path, typer.Argument(help="File to write.")],
    earlier: Annotated[Path | None, typer.Option(help="A packed file: tensors that the run kept stay as in it.")] = None,
) -> None:
    """Pack trained tensors for a package."""
    if output.exists():
        raise EvcapError(f"{output} is there already; move it away or name another file")
    write_shipped(read_trained(trained), output, earlier)
    before, after = (path.stat().st_size / 1e6 for path in (trained, output))
    print(f"{output}: {after:.1f} MB, {trained} has {before:.1f} MB")


if __name__ == "__main__":
    typer.run(command(main))
