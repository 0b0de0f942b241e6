"""The command `evcap`, also as `python -m evcap`: what must be settled before anything heavy is imported."""

from __future__ import annotations

import os
import sys

from evcap.cli.interrupt import stop_while_importing


def main() -> None:
    """Run the command line. Once a command runs, `evcap.cli.console.command` answers to Ctrl-C."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
    stop_while_importing()
    # Idle OpenMP threads spin, so that on a busy machine everybody waits for them: up to ten times as long. Passive ones
    # sleep, which costs microseconds. Read when torch is imported; GOMP_SPINCOUNT, if somebody sets it, has precedence.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from evcap.cli.app import app

    app()


if __name__ == "__main__":
    main()
