"""Ctrl-C while the command is still importing: one line instead of a traceback. Imports nothing that takes time."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130  # the exit code shells use for Ctrl-C


def stop(*_) -> None:
    """The handler that ends the process at once."""
    os.write(2, b"evcap: interrupted\n")
    os._exit(INTERRUPTED)


def stop_while_importing() -> None:
    """From now on Ctrl-C ends the process, unless it is a background job, which ignores that."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)


def raise_from_now_on() -> None:
    """What `stop_while_importing` did is over: Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
