"""Shared by tests of `evcap region`: the command with a describer that has no model."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch
from cli_tools import run
from PIL import Image
from region_tools import FakeDescriber, with_regions

import evcap


@pytest.fixture
def describer(monkeypatch):
    fake = FakeDescriber()
    captioner = namedtuple("Captioner", "region_describer")(fake)
    monkeypatch.setattr(evcap, "load", lambda preset="embedded", memory=None: captioner)
    return fake


@pytest.fixture(scope="session")
def region_preset(tmp_path_factory) -> Path:
    """For a fake describer: nothing but the header of the tensors is read."""
    return with_regions(tmp_path_factory.mktemp("fake"), {"nothing": torch.zeros(1)})


@pytest.fixture
def region(describer, region_preset, tmp_path, monkeypatch):
    """Runs the command in a folder with a.png, 40 x 30, its left half red, and b.png and c.png, 20 x 20, blue and grey."""
    monkeypatch.chdir(tmp_path)
    picture = Image.new("RGB", (40, 30), (0, 250, 0))
    picture.paste((250, 0, 0), (0, 0, 20, 30))
    picture.save("a.png")
    Image.new("RGB", (20, 20), (0, 0, 250)).save("b.png")
    Image.new("RGB", (20, 20), (90, 90, 90)).save("c.png")
    return lambda *args, code=0: run("region", *args, "--preset", region_preset, code=code)
