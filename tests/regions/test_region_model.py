"""The region model: prompts put together by hand, photos beside it as before, tensors written and read, DynRefer's layout."""

import dataclasses

import pytest
import torch
from places import GOLDEN
from tiny import tiny_language, tiny_preset
from tiny_regions import HEAD, REGIONS, TinyTower, scrambled, tiny_spine
from tiny_seq2seq import seq2seq_language
from torch import nn

from evcap.config import DecodingConfig, QFormerConfig, load_preset
from evcap.errors import EvcapError
from evcap.model.evcap import QueryEncoder
from evcap.model.name_fusion import name_tokenizer
from evcap.parity.dynrefer.recording import Recording
from evcap.regions.model import RegionModel, open_regions
from evcap.regions.view_fusion import ViewFusion
from evcap.weights.dynrefer import read_dynrefer
from evcap.weights.shipped import write_shipped
from evcap.weights.wheels import write_safetensors

NAMES = [["dog", "red bus"], []]
CONTROLS = ["red,dog|", "|"]


@pytest.fixture
def spine():
    return tiny_spine()


@pytest.fixture
def model(spine):
    return scrambled(RegionModel(spine, spine.language))


def dynrefer(language=None, **changes) -> RegionModel:
    """A region model of DynRefer's layout: a Q-Former of its own, no names of EVCap."""
    settings = load_preset("dynrefer-flan-t5-xl").regions
    regions = dataclasses.replace(settings, texts="minilm", text_width=16, head=HEAD, **changes)
    preset = dataclasses.replace(tiny_preset((language or tiny_language()).config), regions=regions)
    torch.manual_seed(0)
    return scrambled(RegionModel(QueryEncoder(preset, TinyTower()), language))


def embedded(language, text: str) -> torch.Tensor:
    return language.embed(torch.tensor(language.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("names_as_words", [False, True])
def test_the_prompt_is_its_parts_one_after_the_other(names_as_words):
    spine = tiny_spine(regions=dataclasses.replace(REGIONS, names_as_words=names_as_words))
    model = scrambled(RegionModel(spine, spine.language))
    queries = torch.randn(2, 6, 24)
    found = model.prompt(queries, NAMES, CONTROLS)
    lists = ["", ""] if names_as_words else ["\nObjects: dog, red bus.", "\nObjects: none."]
    for row, (names, words, listed) in enumerate(zip(NAMES, CONTROLS, lists, strict=True)):
        fused = spine.name_features(queries[row : row + 1], name_tokenizer()([names]))
        vectors = nn.functional.linear(torch.cat([queries[row], fused[0]]), model.projection.weight, model.projection.bias)
        first = spine.language.embed(torch.tensor([spine.language.tokenizer.bos_token_id]))
        texts = [embedded(spine.language, text) for text in ("Look: ", f"\nWords: {words}"[:24], listed, "\nRegion:")]
        expected = torch.cat([first, texts[0], vectors, *texts[1:]])
        torch.testing.assert_close(found.embeddings[row][found.mask[row]], expected, atol=1e-5, rtol=1e-5)
    assert found.mask[:, -1].all() and not found.mask.all()


@torch.no_grad()
def test_more_slots_change_nothing_that_is_said(model):
    queries = torch.randn(2, 6, 24)
    narrow, wide = model.prompt(queries, NAMES, CONTROLS), model.prompt(queries, NAMES, CONTROLS, slots=90)
    assert wide.mask.shape[1] > narrow.mask.shape[1]
    decoding = DecodingConfig(beams=2, max_length=5)
    said = [[[h.text for h in row] for row in model.language.decode(prompt, 2, decoding)] for prompt in (narrow, wide)]
    assert said[0] == said[1]
    assert said[0] == [[h.text for h in row] for row in model.captions(queries, NAMES, CONTROLS, 2, decoding)]


@torch.no_grad()
@pytest.mark.parametrize("begin", [True, False])
def test_dynrefer_prompts(begin):
    """The vectors, then the control words with the learned vector on each; what a causal prompt begins with stands behind the
    vectors, and padding between the two."""
    language = tiny_language(before="", after="", names_in_prompt=False)
    model = dynrefer(language, begin=begin)
    queries = torch.randn(2, 6, 24)
    found = model.prompt(queries, NAMES, ["red,dog|", "a|"])
    vectors = nn.functional.linear(queries, model.projection.weight, model.projection.bias)
    begun = language.embed(torch.tensor([0]))
    for row, words in enumerate(["red,dog|", "a|"]):
        words = embedded(language, words)
        parts = [begun, vectors[row], words + model.control_embedding]
        if not begin:
            parts = [vectors[row], torch.cat([begun, words]) + model.control_embedding]
        torch.testing.assert_close(found.embeddings[row][found.mask[row]], torch.cat(parts))
    head = 6 + begin
    assert found.mask[:, :head].all() and found.mask[1, head:].tolist() == [False] * 6 + [True] * (2 + (not begin))


@torch.no_grad()
def test_the_prompt_of_an_encoder_decoder_model_is_the_release_one():
    """DynRefer's t5: projected vectors, then the ids of the control words and the end token, the learned vector on each."""
    language = seq2seq_language("flan-t5", before="", after="", names_in_prompt=False)
    model = dynrefer(language)
    queries = torch.randn(2, 6, 24)
    found = model.prompt(queries, [[], []], ["red,dog|", "a|"])
    batch = language.tokenizer(["red,dog|", "a|"], padding="longest", return_tensors="pt")  # ends each with </s>
    words = language.llm.get_input_embeddings()(batch.input_ids) + model.control_embedding
    expected = torch.cat([model.projection(queries), words], dim=1)
    mask = torch.cat([torch.ones(2, 6, dtype=torch.long), batch.attention_mask], dim=1).bool()
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.embeddings[mask], expected[mask])


@torch.no_grad()
def test_queries_of_the_recording():
    """The recorded views of the release through the fusion of a region model that has the recorded tensors, and its own
    Q-Former behind it."""
    recording = Recording(GOLDEN / "dynrefer")
    sizes = recording.meta["sizes"]

    class Tower(TinyTower):
        prefix = 1

        def grid(self, height, width):
            return height // 14, width // 14

    preset = tiny_preset(tiny_language().config)
    regions = dataclasses.replace(
        load_preset("dynrefer-flan-t5-xl").regions, texts="minilm", text_width=20, head=QFormerConfig(32, 2, 4, 128)
    )
    vision = dataclasses.replace(preset.vision, image_size=sizes["image"], width=sizes["width"], tokens=37)
    qformer = QFormerConfig(width=48, layers=2, heads=4, intermediate=96)
    preset = dataclasses.replace(preset, vision=vision, image_qformer=qformer, regions=regions)
    torch.manual_seed(0)
    model = RegionModel(QueryEncoder(preset, Tower()), None).eval()
    nn.init.normal_(model.image_qformer.queries)
    parts = {"view_fusion": model.view_fusion, "tag_head": model.tag_head, "region_text_head": model.region_text_head}
    parts = nn.ModuleDict(parts)
    parts.load_state_dict(read_dynrefer([recording.state_file], parts.state_dict()).tensors)
    tokens, boxes = recording["visual.tokens"].unflatten(0, (-1, 3)), recording["views.boxes"]
    torch.testing.assert_close(
        model.queries(tokens, boxes), model.image_qformer(recording["visual.fused"]), atol=1e-4, rtol=1e-4
    )
    regions = recording["heads.x_v"]
    torch.testing.assert_close(
        model.tag_head(regions, recording["state.clip_embeds"]), recording["tag.logits"], atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_a_residual_fusion_begins_with_the_region_own_view(spine):
    model = RegionModel(spine, spine.language).eval()
    tokens, boxes = torch.randn(2, 3, 4, 20), torch.tensor([0.0, 0, 64, 64]).expand(2, 3, 4)
    alone = ViewFusion(20, 1, align=False).pooled(tokens[:, :1], boxes[:, :1], (2, 2), 64)[:, 0]
    torch.testing.assert_close(model.view_fusion(tokens, boxes, (2, 2), 64), alone)
    torch.testing.assert_close(model.queries(tokens, boxes), spine.query_features(alone))
    moved = scrambled(model)
    assert not torch.allclose(moved.view_fusion(tokens, boxes, (2, 2), 64), alone)
    others = tokens.clone()
    others[:, 2] += 1
    assert not torch.allclose(moved.view_fusion(others, boxes, (2, 2), 64), moved.view_fusion(tokens, boxes, (2, 2), 64))


@torch.no_grad()
def test_photos_are_captioned_as_before_beside_a_region_model(spine):
    queries, decoding = torch.randn(2, 6, 24), DecodingConfig(beams=3, max_length=6)
    retrieved = name_tokenizer()(NAMES)
    prompt = spine.language.prompt(spine.visual_vectors(queries, retrieved), NAMES)
    logits = spine.language.llm(inputs_embeds=prompt.embeddings).logits
    before = spine.generate(queries, retrieved, 2, decoding)
    state = {name: tensor.clone() for name, tensor in spine.state_dict().items()}
    model = scrambled(RegionModel(spine, spine.language))
    region = model.language.llm(inputs_embeds=prompt.embeddings).logits
    assert not torch.allclose(region, logits, atol=1e-2)  # the adapters are there
    assert torch.equal(spine.language.llm(inputs_embeds=prompt.embeddings).logits, logits)
    assert spine.generate(queries, retrieved, 2, decoding) == before
    assert state.keys() == spine.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in spine.state_dict().items())
    theirs = {id(tensor) for tensor in spine.language.parameters()}
    own = {name for name, tensor in model.language.named_parameters() if id(tensor) not in theirs}
    assert own and all(name.endswith((".down", ".up")) for name in own)  # nothing is held twice
    assert not any(name.startswith(("spine", "backbone")) for name in model.state_dict())


def test_adapters_that_are_not_folded_in_are_refused():
    spine = tiny_spine(lora_rank=2)
    with pytest.raises(EvcapError, match="open the captioner with merged=True"):
        RegionModel(spine, spine.language)
    spine.language.merge()
    RegionModel(spine, spine.language)


@torch.no_grad()
def test_trained_tensors_are_written_and_read(spine, model, tmp_path):
    write_shipped(model.trained(), tmp_path / "regions.safetensors")
    write_safetensors({name: tensor.half() for name, tensor in model.trained().items()}, tmp_path / "half.safetensors")
    names = set(model.trained())
    assert {"projection.weight", "view_fusion.mlp.2.bias", "tag_head.score.bias", "region_text_head.log_scale"} <= names
    assert any(name.endswith(".up") for name in names) and not any("embed_tokens" in name for name in names)
    whole = open_regions(spine, spine.language, tmp_path / "half.safetensors")
    assert not whole.training
    for name, tensor in whole.trained().items():
        assert torch.equal(tensor, model.trained()[name].half().float()), name
    rounded = open_regions(spine, spine.language, tmp_path / "regions.safetensors")
    for name, tensor in rounded.trained().items():
        torch.testing.assert_close(tensor, model.trained()[name], atol=0.02, rtol=1e-3, msg=name)
    tokens, boxes = torch.randn(2, 3, 4, 20), torch.tensor([0.0, 0, 64, 64]).expand(2, 3, 4)
    torch.testing.assert_close(whole.queries(tokens, boxes), model.queries(tokens, boxes), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("projection.bias"), r"tensor 'projection.bias' \(32,\) is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "unexpected tensor 'more'"),
        (lambda t: t.update({"tag_head.score.bias": torch.zeros(2)}), r"'tag_head.score.bias' is \(2,\), expected \(1,\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(spine, model, tmp_path, change, said):
    tensors = {name: tensor + 1 for name, tensor in model.trained().items()}
    change(tensors)
    write_safetensors(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(EvcapError, match=said) as raised:
        open_regions(spine, spine.language, tmp_path / "wrong.safetensors")
    assert "wrong.safetensors" in str(raised.value) and "\n" not in str(raised.value)
    before = {name: tensor.clone() for name, tensor in model.trained().items()}
    with pytest.raises(EvcapError):
        model.load(tensors, "given")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trained().items())
