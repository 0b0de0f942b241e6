"""Progress on standard error: a bar on a terminal, elsewhere a plain line about every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import tqdm as library

from evcap.progress import Advance, Progress, silent

EVERY = 10.0  # seconds between two lines
LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"


class tqdm(library.tqdm):  # the name, and the arguments, are the library's
    """The library's bar, which becomes lines where standard error is no terminal: a log is no place for a bar.

    What is done before the first ten seconds are over says nothing there. disable: True for neither bar nor lines.
    """

    def __init__(self, *args, disable: bool | None = False, file=None, **kwargs):
        file = file or sys.stderr
        self.plain, self._shown = not file.isatty(), time.monotonic()
        if self.plain:
            # `miniters`: the clock is looked at after each item, however quick the last ones were
            kwargs |= {"mininterval": EVERY, "miniters": 1, "delay": EVERY, "bar_format": LINE, "leave": False}
        super().__init__(*args, disable=bool(disable), file=file, **kwargs)

    def status_printer(self, file):
        """What writes one state of the bar."""
        if not self.plain:
            return super().status_printer(file)

        def write(line: str) -> None:
            if line:
                file.write(line.strip().replace(": : ", ": ") + "\n")  # `set_description` adds a colon of its own
                file.flush()

        return write

    def refresh(self, *args, **kwargs) -> bool | None:
        """Show the state now; a line comes only when it is time for one."""
        if self.plain:
            if time.monotonic() - self._shown < EVERY:
                return None
            self._shown = time.monotonic()
        return super().refresh(*args, **kwargs)

    def close(self) -> None:
        """Take the bar away; lines stay, and no empty one follows."""
        if self.plain and not self.disable:
            self.disable = True
            self._decr_instances(self)
        else:
            super().close()


def shown(quiet: bool) -> Progress:
    """What commands and recipes give to the library: a bar for each piece of work, or nothing."""
    return silent if quiet else _bar


def tell(line: str) -> None:
    """A line on standard error that does not break a bar."""
    tqdm.write(line, file=sys.stderr)


@contextmanager
def _bar(total: int, title: str, unit: str = "img", done: int = 0) -> Iterator[Advance]:
    with tqdm(total=total, initial=done, desc=title, unit=unit, unit_scale=unit in ("B", "key")) as bar:

        def advance(count: int = 1, note: str = "") -> None:
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(count)

        yield advance
