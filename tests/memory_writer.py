"""Starts processes that edit a memory: `python memory_writer.py FOLDER`, with a line NAME SAVES for each on standard input.

Each is a fork, so that Python starts and imports but once. It prints its process id, and then the number of each save as
it begins; when it is over or was killed, "gone" is printed. A save adds one entry, NAME0 NAME1 ... If another process
changed the memory meanwhile, it opens it again and repeats the edit.
"""

import os
import sys

import numpy as np
import safetensors.numpy  # noqa: F401 (before the forks, which would each import it)

from evcap.errors import EvcapError
from evcap.memory.memory import VisualNameMemory


def add(folder: str, name: str, number: int) -> None:
    while True:
        memory = VisualNameMemory.open(folder)
        memory.add(np.ones((1, 256), np.float16), [f"{name}{number}"], [name], [f"{number}.jpg"])
        try:
            return memory.save(folder)
        except EvcapError as error:
            if "another process" not in str(error):
                raise


def say(text: object) -> None:
    """One line by one system call: print makes two where PYTHONUNBUFFERED is set, and a kill may fall between them."""
    os.write(1, f"{text}\n".encode())


def edit(folder: str, name: str, saves: int) -> None:
    say(os.getpid())
    for number in range(saves):
        say(number)
        add(folder, name, number)


if __name__ == "__main__":
    for line in iter(sys.stdin.readline, ""):
        name, saves = line.split()
        child = os.fork()
        if child == 0:
            edit(sys.argv[1], name, int(saves))
            break
        os.waitpid(child, 0)
        say("gone")
