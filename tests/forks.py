"""Recipes run in forks of one process that has imported what they need: killing one costs no start of Python.

As a script: for each line on standard input, a JSON list of a folder, environment variables, a script and its arguments, it
forks, prints the process id and, once the fork is gone, its exit code (-9 after SIGKILL).
"""

import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from places import REPOSITORY


@functools.cache
def _parent() -> subprocess.Popen:
    # one thread: a fork has none of its parent's others
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, __file__], text=True, bufsize=1, env=variables, **pipes)


class Fork:
    """One run of a script of the repository in `folder`, where its outputs go, too; only one at a time."""

    def __init__(self, folder: Path, script: str, *arguments, **variables: str):
        self._outputs = [(folder / name).resolve() for name in ("stdout", "stderr")]
        command = [str(REPOSITORY / script), *map(str, arguments)]
        _parent().stdin.write(json.dumps([str(folder), list(map(str, self._outputs)), variables, command]) + "\n")
        self._process = int(_parent().stdout.readline())

    def alive(self) -> bool:
        return Path("/proc", str(self._process)).exists()

    def finish(self) -> tuple[str, str]:
        """Wait for its end; what it wrote. Fails with that if it failed."""
        code = int(_parent().stdout.readline())
        said, complaints = (path.read_text() for path in self._outputs)
        assert code == 0, said + complaints[-4000:]
        return said, complaints

    def kill(self) -> None:
        """SIGKILL. Fails if it was over before."""
        if self.alive():
            os.kill(self._process, signal.SIGKILL)
        assert int(_parent().stdout.readline()) == -signal.SIGKILL, self._outputs[1].read_text()[-4000:]


def _run(folder: str, outputs: list[str], variables: dict[str, str], command: list[str]) -> None:
    """Do as `python *command` does, and end."""
    os.environ.update(variables)
    os.chdir(folder)
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv, code = command, 1
    try:
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)  # to take torch apart would touch, and so copy, all of its memory


if __name__ == "__main__":
    from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline  # noqa: F401

    import eval.evaluate  # noqa: F401
    import train.pretrain
    import train.train  # noqa: F401

    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            _run(*json.loads(line))
        os.write(1, f"{child}\n".encode())
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
