"""The command line: `evcap caption`, `names`, `region`, `memory`, `index`, `ask`. Commands import heavy modules themselves."""

from __future__ import annotations

from typing import Annotated

import typer

import evcap
from evcap.cli.ask import ask_command
from evcap.cli.caption import caption_command
from evcap.cli.index import index_command
from evcap.cli.memory import memory_app
from evcap.cli.names import names_command
from evcap.cli.region import region_command

app = typer.Typer(
    help="Describe photos, offline, with names from a memory that anyone can edit.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
app.command("caption")(caption_command)
app.command("names")(names_command)
app.command("region")(region_command)
app.add_typer(memory_app, name="memory")
app.command("index")(index_command)
app.command("ask")(ask_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evcap {evcap.__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    app()
