"""The command `evcap`: options, progress, results on their way out. Only here anything is printed."""
