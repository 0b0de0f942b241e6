"""The command `evcap`, also as `python -m evcap`: what must be settled before anything heavy is imported."""

from __future__ import annotations

import os

from evcap.cli.interrupt import stop_while_importing


def main() -> None:
    """Run the command line. Once a command runs, `evcap.cli.console.command` answers to Ctrl-C."""
    stop_while_importing()
    # Idle OpenMP threads spin, so that on a busy machine everybody waits for them: up to ten times as long. Passive ones
    # sleep, which costs microseconds. Read when torch is imported; GOMP_SPINCOUNT, if somebody sets it, has precedence.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from evcap.cli.app import app

    app()


if __name__ == "__main__":
    main()
