"""Numbers recorded from the public EVCap release with small random weights, reproduced through eval/check_parity.py.

tests/golden/evcap holds them: the recording as it was made, but with the rows of the word embeddings that its names use, in
place of all 30,523, and with the release's tensors in three files.
"""

import json
import shutil

import pytest
import torch
from cli_tools import run_recipe
from places import GOLDEN
from safetensors.torch import load_file, save_file

from eval import check_parity
from evcap.parity.evcap import compare

WORDS = "Qformer_txt.bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """The folder that check_parity.py takes; word embeddings that no name uses are 0."""
    folder = tmp_path_factory.mktemp("recording")
    golden = GOLDEN / "evcap"
    for name in ("meta.json", "tensors.safetensors", "llama_state.safetensors"):
        shutil.copy(golden / name, folder)
    state = {name: tensor for path in golden.glob("release_*.safetensors") for name, tensor in load_file(path).items()}
    used = load_file(golden / "word_embeddings.safetensors")
    vocabulary = json.loads((golden / "meta.json").read_text())["bert"]["vocab"]
    state[WORDS] = torch.zeros(vocabulary, used["rows"].shape[1]).index_copy(0, used["ids"], used["rows"])
    save_file(state, folder / "release_state.safetensors")
    return folder


def test_the_recording_is_reproduced(recording):
    result = json.loads(run_recipe(check_parity.main, recording).stdout)
    assert result["passed"]
    assert set(result["differences"]) == {
        *("patch_tokens", "query_output", "name_features", "projected"),
        *("lm_logits", "lm_loss"),
    }
    assert max(result["differences"].values()) <= 1e-5
    assert result["names_equal"] and result["name_tokens_equal"] and result["beams_equal"]


@pytest.mark.parametrize(
    ("tensor", "seen_in"),
    [
        ("visual_encoder.blocks.0.attn.v_bias", ["patch_tokens"]),
        ("Qformer.bert.encoder.layer.0.output_query.dense.bias", ["query_output"]),
        ("Qformer_txt.bert.encoder.layer.0.output.dense.bias", ["name_features", "projected"]),
        ("llama_proj.bias", ["projected", "lm_logits"]),
    ],
)
def test_a_changed_weight_is_noticed(tensor, seen_in, recording, tmp_path):
    folder = tmp_path / "recording"
    shutil.copytree(recording, folder)
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
    told = run_recipe(check_parity.main, tmp_path, code=1)
    assert not told.stdout and said in told.stderr and len(told.stderr.strip().splitlines()) == 1
