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
    # Idle OpenMP threads spin, so that on a busy machine everybody waits for them: up to ten times as long. These spin so
    # briefly that nobody does, and still long enough to meet the next piece of work: 4 photos take 9.3 s, and 9.9 s if idle
    # threads sleep at once. Read when torch is imported; what somebody has set himself holds.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from evcap.cli.app import app

    app()


if __name__ == "__main__":
    main()
