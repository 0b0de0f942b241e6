"""Numbers recorded from the public EVCap release with small random weights, reproduced through eval/check_parity.py.

The recording is no part of the repository: EVCAP_PARITY names its folder (meta.json, tensors.safetensors,
release_state.safetensors, llama_state.safetensors).
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from places import REPOSITORY
from safetensors.torch import load_file, save_file

from eval.check_parity import compare

FOLDER = os.environ.get("EVCAP_PARITY")
recorded = pytest.mark.skipif(not FOLDER, reason="EVCAP_PARITY names no folder with a recording of the EVCap release")


def check(folder) -> tuple[int, str, str]:
    command = [sys.executable, REPOSITORY / "eval" / "check_parity.py", folder]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=variables)
    return run.returncode, run.stdout, run.stderr


@recorded
def test_the_recording_is_reproduced():
    code, out, _ = check(FOLDER)
    result = json.loads(out)
    assert code == 0 and result["passed"]
    assert set(result["differences"]) == {
        *("patch_tokens", "query_output", "name_features", "projected"),
        *("lm_logits", "lm_loss"),
    }
    assert max(result["differences"].values()) <= 1e-5
    assert result["names_equal"] and result["name_tokens_equal"] and result["beams_equal"]


@recorded
@pytest.mark.parametrize(
    ("tensor", "seen_in"),
    [
        ("visual_encoder.blocks.0.attn.v_bias", ["patch_tokens"]),
        ("Qformer.bert.encoder.layer.0.output_query.dense.bias", ["query_output"]),
        ("Qformer_txt.bert.encoder.layer.0.output.dense.bias", ["name_features", "projected"]),
        ("llama_proj.bias", ["projected", "lm_logits"]),
    ],
)
def test_a_changed_weight_is_noticed(tensor, seen_in, tmp_path):
    folder = tmp_path / "recording"
    shutil.copytree(FOLDER, folder)
    state = load_file(folder / "release_state.safetensors")
    state[tensor] = state[tensor] + torch.linspace(0, 0.5, state[tensor].numel()).view_as(state[tensor])
    save_file(state, folder / "release_state.safetensors")
    result = compare(folder)
    assert not result["passed"]
    assert all(result["differences"][name] > 1e-3 for name in seen_in)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "meta.json"), ("{", "meta.json is damaged"), ('{"bert": {}}', "nothing in it is called 'llama'")],
)
def test_a_folder_that_is_no_recording(content, said, tmp_path):
    if content is not None:
        (tmp_path / "meta.json").write_text(content)
        save_file({"pixels": torch.zeros(1)}, tmp_path / "tensors.safetensors")
        save_file({"x": torch.zeros(1)}, tmp_path / "llama_state.safetensors")
    code, out, err = check(tmp_path)
    assert code == 1 and not out
    assert said in err and len(err.strip().splitlines()) == 1
