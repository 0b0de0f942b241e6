"""Every recipe as its users start it: a process of its own, which says what the recipe does."""

import os
import subprocess
import sys

import pytest
from places import REPOSITORY

RECIPES = sorted(
    path.relative_to(REPOSITORY)
    for folder in ("data", "eval", "memory", "train")
    for path in (REPOSITORY / folder).glob("*.py")
    if path.stem not in ("export_lavis", "export_release_fusion")  # run where LAVIS or the release is installed
)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_starts(path):
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    told = subprocess.run([sys.executable, path, "--help"], cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    assert told.returncode == 0 and "Usage: " in told.stdout and not told.stderr, told.stderr
