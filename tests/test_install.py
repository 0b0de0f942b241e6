"""The package as it is installed, seen from other folders."""

import os
import subprocess
import sys


def python(folder, code: str) -> str:
    """What Python prints in a folder, with nothing but what is installed."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_folder_that_is_called_evcap_is_not_taken_for_the_package(tmp_path):
    """As where a clone lies: README's Python lines work in the folder that holds it."""
    (tmp_path / "evcap").mkdir()
    assert python(tmp_path, "import evcap; print(callable(evcap.load))") == "True"


def test_importing_loads_nothing_heavy(tmp_path):
    heavy = "torch", "transformers", "numpy", "PIL", "rasterio", "typer"
    assert python(tmp_path, f"import sys, evcap; print([name for name in {heavy} if name in sys.modules])") == "[]"
