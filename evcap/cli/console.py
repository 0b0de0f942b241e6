"""What the commands share: errors as one line on standard error, a progress bar, images opened ahead of the model."""

from __future__ import annotations

import functools
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from evcap.cli.interrupt import INTERRUPTED, raise_from_now_on
from evcap.errors import EvcapError
from evcap.files import WRITABLE
from evcap.raster.display import DEFAULT, Display

if TYPE_CHECKING:
    from PIL.Image import Image


def complain(message: str) -> None:
    """One line on standard error."""
    typer.echo(f"evcap: {message}", err=True)


def command(function: Callable) -> Callable:
    """A command whose foreseen errors are printed as one line, with exit code 1, and 130 after Ctrl-C."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        raise_from_now_on()
        warnings.filterwarnings("ignore", module="PIL")  # it reports damaged EXIF data and large images twice
        for stream, errors in ((sys.stdout, WRITABLE), (sys.stderr, WRITABLE), (sys.stdin, "surrogateescape")):
            with suppress(AttributeError, io.UnsupportedOperation):  # not a file's stream, or read from before
                stream.reconfigure(errors=errors)  # a name that the terminal's encoding lacks is no reason to stop
        try:
            function(*args, **kwargs)
        except EvcapError as error:
            complain(str(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # whoever read the output has seen enough: typer ends the program in silence
        except OSError as error:
            complain(f"cannot read or write {error.filename or 'standard output'}: {error.strerror}")
            with suppress(OSError):  # else Python tries once more, at its end, to write what could not be written
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None

    return run


def report(failures: Sequence[str], total: int, what: str = "images") -> None:
    """All failures on standard error, a line for each reason: that of an image is the same for all its regions."""
    if failures:
        complain(f"{len(failures)} of {total} {what} failed:")
        for failure in dict.fromkeys(failures):
            typer.echo(f"  {failure}", err=True)


def tell_finished(count: int, total: int, quiet: bool, remark: str = "") -> None:
    """One line on the images that an earlier run finished, if there are some."""
    if count and not quiet:
        complain(f"{count} of {total} images were finished before" + (f"; {remark}" if remark else ""))


class Progress:
    """A bar with the rate on standard error while `advance` counts images; afterwards one line with the mean rate.

    What the command prints meanwhile appears above the bar. Without a terminal there is a line about every ten seconds in
    its place. `quiet` drops all of that.
    """

    def __init__(self, total: int, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        from evcap.cli.progress import tqdm

        class Rate(ProgressColumn):
            def render(self, task) -> Text:
                return Text(f"{task.speed:.1f} images/s" if task.speed else "")

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()
        terminal = sys.stderr.isatty()
        # rich would also catch what goes to a file or pipe, and print it beside the bar instead
        above = sys.stdout.isatty()
        console = Console(stderr=True)
        self._bar = Bar(*columns, console=console, transient=True, disable=quiet or not terminal, redirect_stdout=above)
        self._lines = tqdm(total=total, desc="images", unit=" images", disable=quiet or terminal)
        self._task = self._bar.add_task("loading the model", total=total)
        self._total, self._quiet, self._done, self._start = total, quiet, 0, time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def advance(self) -> None:
        """One more image is done."""
        self._done += 1
        self._bar.update(self._task, advance=1, description="describing")
        self._lines.update()

    def __exit__(self, *caught) -> None:
        self._bar.stop()
        self._lines.close()
        seconds = time.monotonic() - self._start
        if not self._quiet:
            rate = self._done / max(seconds, 1e-9)
            typer.echo(f"{self._done} of {self._total} images in {seconds:.1f} s ({rate:.1f} a second)", err=True)


def caption_with_bar(captioner, queries, beams: int, batch_size: int, title: str) -> list:
    """Captions of N images from their query features (N,32,W), with a bar: list[Caption]."""
    from evcap.cli.progress import tqdm

    captions = []
    with tqdm(total=len(queries), desc=title, unit="img", leave=False, disable=None) as bar:
        for batch in queries.split(batch_size):
            captions += captioner.caption_features(batch, beams=beams, batch_size=batch_size)
            bar.update(len(batch))
    return captions


def answers(
    files: Sequence[Path],
    preset: str,
    batch_size: int,
    ask: Callable[[list[Image]], Iterable],
    display: Display = DEFAULT,
    enough: int | None = None,
) -> Iterator[tuple[Path, Any, str | None]]:
    """(file, answer, None), or (file, None, reason in one line) for an image that failed, in the order of `files`.

    ask: B images -> B answers, while the next images are opened. If a batch fails its images are asked about one by
    one, so that no image suffers from its neighbours; an exception in place of an answer is of its image alone. enough: pixels
    a side to which larger images may be shrunk while they are opened, by default what the preset's tower needs.
    Close the iterator to stop.
    """
    from evcap.config import load_preset
    from evcap.images.ahead import open_ahead
    from evcap.images.opening import ImageError, open_image

    enough = enough or load_preset(preset).vision.opened_side
    with closing(open_ahead(files, batch_size, lambda file: open_image(file, enough, display))) as batches:
        for batch in batches:
            replies = iter(_ask([picture for _, picture in batch if not isinstance(picture, ImageError)], ask))
            for file, picture in batch:
                reply = picture if isinstance(picture, ImageError) else next(replies)
                if isinstance(reply, ImageError):
                    yield file, None, str(reply)
                elif isinstance(reply, EvcapError):
                    yield file, None, f"{file}: {reply}"
                elif isinstance(reply, Exception):
                    yield file, None, f"{file}: {type(reply).__name__}: {' '.join(str(reply).split())}"
                else:
                    yield file, reply, None


def _ask(pictures: list[Image], ask: Callable[[list[Image]], Iterable]) -> list:
    """One answer, or the exception that came instead, for each image."""
    try:
        return list(ask(pictures)) if pictures else []
    except EvcapError:
        raise  # the images are open: what is wrong now is a setting, a memory or a model
    except Exception as error:  # one by one: whatever one image does to the model, the others get their answers
        return [error] if len(pictures) == 1 else [reply for picture in pictures for reply in _ask([picture], ask)]
