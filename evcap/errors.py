class EvcapError(Exception):
    """A mistake the user can mend: one line that says what was wrong and what to do. The command line prints it and exits 1."""
