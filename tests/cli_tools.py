"""Tools for tests of the command line, among them a captioner without a model for what happens around the model.

Its captions tell the colour of the image. As a script: the command line with this captioner in it.
"""

import json
import os
import sys
import time
from collections import namedtuple

import numpy as np
import typer
from typer.testing import CliRunner

import evcap
from evcap.cli.app import app
from evcap.cli.console import command
from evcap.config import shipped_memory

# by which commands tell, before a model is loaded, whether a memory fits it
ENCODER = json.loads((shipped_memory() / "manifest.json").read_text())["encoder"]
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (90, 90, 90), (250, 250, 0)]

Hit = namedtuple("Hit", "name similarity query")
Caption = namedtuple("Caption", "caption captions names")


class FakeCaptioner:
    """Calls are recorded in `calls` (numbers of images). An image 13 pixels wide makes its whole batch fail."""

    def __init__(self, memory=None, seconds: float = 0.0):
        self.memory, self.seconds, self.calls = memory, seconds, []

    def _colours(self, images):
        self.calls.append(len(images))
        time.sleep(self.seconds)
        if any(image.width == 13 for image in images):
            raise RuntimeError("the model\nchoked")
        return [tuple(np.asarray(image)[0, 0].tolist()) for image in images]

    def caption(self, images, num_captions=1, beams=None, min_length=None, max_length=None, batch_size=16):
        texts = [[said(colour), *["again"] * (num_captions - 1)] for colour in self._colours(images)]
        return [Caption(row[0], row, [Hit("sky", 0.61234567, 3), Hit("sea", np.float32(0.5), 7)]) for row in texts]

    def names(self, images, batch_size=16):
        return [[Hit("sky", 0.61, 3), Hit("fire hydrant", 0.5, 7)] for _ in self._colours(images)]

    def attention(self, image):
        return np.random.default_rng(0).random((32, 4, 4)).astype(np.float32) / 16

    def keys(self, images, batch_size=16):
        keys = np.array(self._colours(images), np.float32) + 1
        return keys / np.linalg.norm(keys, axis=1, keepdims=True)


def run(*args, code: int = 0, stdin: str | None = None):
    """Run a command in this process; its exit code must be `code`."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def invoke_recipe(main, *args):
    """Run a recipe's `main` in this process as its file does, whatever its exit code."""
    recipe = typer.Typer()
    recipe.command()(command(main))
    return CliRunner().invoke(recipe, [str(arg) for arg in args], catch_exceptions=False)


def run_recipe(main, *args, code: int = 0):
    """Run a recipe's `main` in this process as its file does; its exit code must be `code`."""
    result = invoke_recipe(main, *args)
    assert result.exit_code == code, result.output
    return result


def said(colour) -> str:
    """The fake captioner's caption of an image of one colour."""
    return "colour {} {} {}".format(*colour)


def jsonl(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    seconds = float(os.environ.get("SECONDS_A_BATCH", "0"))
    evcap.load = lambda preset="embedded", memory=None, generator=None: FakeCaptioner(seconds=seconds)
    sys.argv[0] = "evcap"
    app()
