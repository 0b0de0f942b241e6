"""Files of the EVCap release: checkpoints with and without its fusion, its pickled memory, and pickles that are no memory."""

import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lavis_files import lavis_qformer, lavis_tower, release_tensors, small_paper_preset
from qformer_reference import written_out
from torch import nn

from evcap.errors import EvcapError
from evcap.model.build import skeleton
from evcap.model.evcap import EVCap, trained_parts
from evcap.model.name_fusion import Retrieved
from evcap.model.towers import build_backbone
from evcap.weights.checkpoints import read_tensors
from evcap.weights.release import read_release, read_release_memory

TRAINED = ("query_tokens", "query_tokens_txt", "llama_proj.weight", "llama_proj.bias")


class Harmful:
    """Whoever unpickles it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def preset():
    return small_paper_preset()


@pytest.fixture
def files(preset, tmp_path):
    """000.pt with the four trained tensors, as distributed training names them, and the drawn fusion."""
    tensors = release_tensors(preset)
    trained = {f"module.{name}": tensors[name] for name in TRAINED}
    torch.save({"model": trained, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "epoch": 0}, tmp_path / "000.pt")
    torch.save({k: v for k, v in tensors.items() if k.startswith("Qformer_txt.")}, tmp_path / "fusion.pt")
    return [tmp_path / "000.pt", tmp_path / "fusion.pt"]


@torch.no_grad()
def test_a_checkpoint_with_its_fusion_is_the_whole_trained_part(preset, files):
    placed = read_release(files, trained_parts(skeleton(preset)))
    model = EVCap(preset, nn.Identity(), build_backbone(preset.vision)).eval()
    missing, unexpected = model.load_state_dict(placed.tensors, strict=False)
    assert not unexpected and not [n for n in missing if n in trained_parts(model)]
    tensors = release_tensors(preset)
    torch.testing.assert_close(model.projection.weight, tensors["llama_proj.weight"])
    torch.testing.assert_close(model.image_qformer.queries, tensors["query_tokens"])
    unread = {n for n in placed.left_out if n.startswith("Qformer_txt.bert.encoder.layer.3.")}
    assert len(unread) == 6 and all("nobody reads" in placed.left_out[n] for n in unread)

    # V, with the names embedded and the fusion's layers written out one image after the other
    ids, mask = torch.tensor([[3, 9, 4], [7, 1, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    queries = torch.randn(2, 6, 24)
    start = "Qformer_txt.bert.embeddings"
    words = tensors[f"{start}.word_embeddings.weight"][ids] + tensors[f"{start}.position_embeddings.weight"][:3]
    norm = tensors[f"{start}.LayerNorm.weight"], tensors[f"{start}.LayerNorm.bias"]
    words = nn.functional.layer_norm(words, (24,), *norm, 1e-12)
    expected = written_out(model.fusion.qformer, words, mask, queries)
    torch.testing.assert_close(model.name_features(queries, Retrieved([[], []], ids, mask)), expected, atol=1e-4, rtol=1e-4)


def test_the_first_of_two_files_counts(preset, files, tmp_path):
    """BLIP-2's file behind a checkpoint fills nothing in: its query tokens are not those that were trained."""
    torch.save({"model": lavis_qformer(preset)}, tmp_path / "blip2.pth")
    wanted, trained = trained_parts(skeleton(preset)), release_tensors(preset)["query_tokens"]
    placed = read_release([*files, tmp_path / "blip2.pth"], wanted)
    assert torch.equal(placed.tensors["image_qformer.queries"], trained)
    assert placed.left_out["query_tokens"] == "an earlier source has it"
    other = read_release([tmp_path / "blip2.pth", *files], wanted).tensors["image_qformer.queries"]
    assert torch.equal(other, lavis_qformer(preset)["query_tokens"]) and not torch.equal(other, trained)


def test_a_checkpoint_without_its_fusion_says_where_to_get_it(preset, files):
    wanted = trained_parts(skeleton(preset))
    with pytest.raises(EvcapError, match=r"the name fusion is missing \('fusion.*' and \d+ more\).*export_release_fusion.py"):
        read_release(files[:1], wanted)


def test_a_checkpoint_of_another_language_model(preset, files):
    tensors = release_tensors(preset)
    torch.save({"model": {**{n: tensors[n] for n in TRAINED}, "llama_proj.weight": torch.zeros(40, 24)}}, files[0])
    with pytest.raises(EvcapError, match=r"000.pt: tensor 'llama_proj.weight' is \(40, 24\), expected \(32, 24\)"):
        read_release(files, trained_parts(skeleton(preset)))


def test_everything_in_one_file(preset, tmp_path):
    """What the release's whole model holds, tower included: every tensor of ours is in it, the rest is said to be left out."""
    state = {f"visual_encoder.{k}": v for k, v in lavis_tower(preset, blocks_more=0).items()}
    state |= lavis_qformer(preset) | release_tensors(preset)
    torch.save(state, tmp_path / "all.pt")
    wanted = skeleton(preset).state_dict()
    assert set(read_release([tmp_path / "all.pt"], wanted).tensors) == set(wanted)


# -- the pickled memory


def dump(content, path):
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("form", ["tensor", "half tensor", "array", "torch.save"])
def test_a_memory_is_read(form, tmp_path):
    keys, names = torch.randn(5, 8), ["dog", "Frisbee!", "teddy (bear)", "dog", "cat"]
    path = tmp_path / "memory.pkl"
    if form == "torch.save":
        torch.save((keys, names), path)
    else:
        dump(({"tensor": keys, "half tensor": keys.half(), "array": keys.numpy()}[form], names), path)
    found, said = read_release_memory(path)
    assert said == names and found.dtype == np.float32
    np.testing.assert_allclose(found, keys.numpy(), atol=1e-2 if form == "half tensor" else 0)


@pytest.mark.parametrize("place", ["alone", "names", "inside a storage", "torch.save", "checkpoint"])
def test_a_harmful_file_does_nothing_but_one_line(place, tmp_path):
    harmful, path = Harmful(tmp_path / "created"), tmp_path / "given"
    if place == "alone":
        dump(harmful, path)
    elif place == "names":
        dump((torch.zeros(2, 3), ["dog", harmful]), path)
    elif place == "inside a storage":

        class Nested:
            def __reduce__(self):
                inner = tmp_path / "inner"
                torch.save(harmful, inner, _use_new_zipfile_serialization=False)
                return torch.storage._load_from_bytes, (inner.read_bytes(),)

        dump((Nested(), ["dog"]), path)
    else:
        torch.save({"model": {"query_tokens": harmful}}, path)
    read = read_release_memory if place != "checkpoint" else lambda p: read_tensors(p, lambda name: True)
    with pytest.raises(EvcapError, match="is refused: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (3, "is no memory of the EVCap release"),
        ((torch.zeros(2, 3), ["a"]), "holds 2 keys and 1 names"),
        ((torch.zeros(2), ["a", "b"]), "is no memory"),
        ((torch.zeros(1, 2), [7]), "is no memory"),
        ({"keys": 1}, "is no memory"),
    ],
)
def test_a_pickle_of_something_else(content, said, tmp_path):
    with pytest.raises(EvcapError, match=said):
        read_release_memory(dump(content, tmp_path / "given.pkl"))


WHOLE = pickle.dumps((torch.ones(3, 2), ["a", "b", "c"]))  # once: torch does not always write as many bytes


@given(data=st.data())
def test_damaged_pickles_give_one_line(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "memory.pkl"
    whole = bytearray(WHOLE)
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        keys, names = read_release_memory(path)
    except EvcapError as error:
        assert "\n" not in str(error)
    else:
        assert len(keys) == len(names)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(EvcapError, match="cannot read .*: No such file"):
        read_release_memory(tmp_path / "nothing.pkl")
