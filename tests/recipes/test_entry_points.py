"""Every recipe as its users start it: a script that says what the recipe does."""

import pytest
from forks import Fork
from places import REPOSITORY

RECIPES = sorted(
    path.relative_to(REPOSITORY)
    for folder in ("data", "eval", "memory", "train")
    for path in (REPOSITORY / folder).glob("*.py")
    if path.stem not in ("export_lavis", "export_release_fusion")  # run where LAVIS or the release is installed
)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_starts(path, tmp_path):
    told, complaints = Fork(tmp_path, path, "--help").finish()
    assert "Usage: " in told and not complaints, complaints
