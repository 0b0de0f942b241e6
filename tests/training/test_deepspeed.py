"""Training under DeepSpeed ZeRO-3, one process on the CPU: it learns, and a killed run goes on to the same numbers."""

import importlib.util
import socket
import time

import pytest
import torch
from tiny_run import config_for, finish, log, start, world

from evcap.weights.wheels import read_safetensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]
SETTINGS = {"accumulate": 1, "validate": 0, "max_steps": 8}


@pytest.fixture
def deepspeed(monkeypatch):
    """What `accelerate launch` with train/configs/accelerate/zero3.yaml sets, for one process on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_GRADIENT_CLIPPING": "1.0",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)


def test_a_killed_run_goes_on(deepspeed):
    finish(start("train", config_for("train", "zero3", **SETTINGS)))
    losses = [row["loss"] for row in log("zero3")]
    assert len(losses) == 8 and sum(losses[-3:]) < 0.95 * sum(losses[:3])

    config = config_for("train", "zero3-killed", **SETTINGS)
    process, logged = start("train", config), world() / "zero3-killed" / "log.jsonl"
    while not (logged.exists() and logged.read_text().count('"loss"') >= 4):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.kill()
    process.communicate()
    finish(start("train", config))
    assert log("zero3-killed") == log("zero3")
    ended = read_safetensors(world() / "zero3" / "last.safetensors")
    for name, tensor in read_safetensors(world() / "zero3-killed" / "last.safetensors").items():
        assert torch.equal(tensor, ended[name]), name
    assert len(list((world() / "zero3" / "checkpoint").glob("deepspeed-*"))) == 1
