"""Where wings enter the chain: patch tokens of any grid, further blocks of the prompt, hidden states of generated tokens."""

import numpy as np
import pytest
import torch
from tiny import tiny_evcap, tiny_language

from evcap.config import DecodingConfig, load_preset
from evcap.language.model import TextBlock
from evcap.model.evcap import PatchEmbeddingNorm
from evcap.model.name_fusion import Retrieved
from evcap.model.towers import build_backbone

DECODING = DecodingConfig(beams=2, max_length=6)


@pytest.fixture
def retrieved() -> Retrieved:
    return Retrieved(
        [["dog"], []], torch.tensor([[1, 5, 7, 2], [1, 2, 0, 0]]), torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    )


@torch.no_grad()
@pytest.mark.parametrize("grid", [(2, 2), (1, 7), (5, 3)])
def test_patch_tokens_of_any_grid(grid, retrieved):
    model = tiny_evcap()
    torch.nn.init.normal_(model.patch_norm.position)
    patches = torch.randn(2, grid[0] * grid[1], 20)
    captions = model.generate(model.query_features(patches, grid), retrieved, 1, DECODING)
    assert len(captions) == 2
    with pytest.raises(ValueError, match="patch tokens are no grid"):
        model.query_features(patches[:, 1:], grid)


@torch.no_grad()
def test_positions_of_another_grid_are_those_of_the_picture():
    """A position that is linear in x and y is found again, away from the border, on a grid twice as fine; the filter is not
    exact for lines."""
    norm = PatchEmbeddingNorm(64, 2)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    norm.position.copy_(torch.stack([columns, rows], dim=-1).view(1, 64, 2))
    found = norm(torch.zeros(1, 256, 2), (16, 16))[0].view(16, 16, 2)
    expected = (torch.arange(16.0) + 0.5) / 2 - 0.5
    inner = slice(4, 12)
    torch.testing.assert_close(found[8, inner, 0], expected[inner], atol=0.06, rtol=0)
    torch.testing.assert_close(found[inner, 8, 1], expected[inner], atol=0.06, rtol=0)


def test_caption_patches_is_caption(captioner, examples):
    alone = captioner.caption(examples[:2], beams=2)
    assert captioner.caption_patches(captioner.patch_tokens(examples[:2]), beams=2) == alone
    wide = captioner.caption_patches(captioner.patch_tokens(examples[:1])[:, :45], (5, 9), beams=2)  # the upper rows
    assert wide[0].caption


@torch.inference_mode()
def test_pyramid_of_the_embedded_tower(captioner, examples):
    tower, pixels = captioner.model.backbone, captioner.pixels(examples[:1])
    maps = tower.pyramid(pixels)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 72, 72), (48, 36, 36), (120, 18, 18), (1280, 9, 9)]
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), tower(pixels))
    assert tower.grid(288, 288) == (9, 9) and tower.grid(288, 160) == (9, 5)


def test_grid_of_a_vit():
    with torch.device("meta"):
        tower = build_backbone(load_preset("evcap-vicuna-13b").vision)
    assert tower.grid(224, 224) == (16, 16) and tower.prefix == 1
    assert tower.pyramid(torch.zeros(1, 3, 224, 224)) == ()


def test_attention_maps_have_the_grid_of_the_tower(captioner, examples):
    maps = captioner.attention(examples[0])
    assert maps.shape == (32, 9, 9)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-4)


@torch.no_grad()
def test_blocks_of_a_prompt_lie_one_after_the_other():
    language = tiny_language()
    vectors, objects = torch.randn(2, 4, 32), torch.randn(2, 3, 32)
    plain, longer = language.prompt(vectors, [["dog"], []]), language.prompt(vectors, [["dog"], []], 0, [objects])
    start = len(language.first) + len(language.ids(language.config.before)) + 4
    assert torch.equal(longer.embeddings[:, start : start + 3], objects)
    cut = torch.cat([longer.embeddings[:, :start], longer.embeddings[:, start + 3 :]], dim=1)
    assert torch.equal(cut, plain.embeddings) and longer.mask[:, start : start + 3].all()


@torch.no_grad()
def test_text_blocks_of_unequal_length_predict_as_alone():
    language = tiny_language()
    rows, vectors = [language.ids("a dog"), language.ids("a much longer text")], torch.randn(2, 4, 32)
    tail = language.ids(" end")
    packed = language.pack([["A dog"], ["A cat"]])
    together = language.token_losses(language.joined([TextBlock(rows), vectors, TextBlock([tail] * 2)]), packed)
    for one, row in enumerate(rows):
        prompt = language.joined([TextBlock([row]), vectors[one : one + 1], TextBlock([tail])])
        alone = language.token_losses(prompt, language.pack([["A dog", "A cat"][one : one + 1]][0:1]))
        torch.testing.assert_close(together[one : one + 1], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_states_of_generated_tokens_are_those_of_the_plain_model():
    """Of every token, the last one included, against one pass of the model over prompt and tokens."""
    language = tiny_language()
    prompt = language.prompt(torch.randn(2, 4, 32), [["dog"], ["a", "b"]])
    rows = language.decode(prompt, 2, DECODING)
    found = language.hidden_states(prompt, language.pack_ids([[h.tokens for h in row] for row in rows]))
    for embeddings, mask, row, states in zip(prompt.embeddings, prompt.mask, rows, found, strict=True):
        start = 0
        for hypothesis in row:
            own = language.embed(torch.tensor(hypothesis.tokens))
            inputs = torch.cat([embeddings[mask], own])[None]
            expected = language.llm.model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -len(own) :]
            torch.testing.assert_close(states[start : start + len(own)], expected, atol=1e-5, rtol=1e-5)
            start += len(own)


@torch.no_grad()
def test_further_blocks_reach_loss_and_captions(retrieved):
    model = tiny_evcap()
    queries, objects = torch.randn(2, 6, 24), torch.randn(2, 3, 32)
    packed = model.language.pack([["A dog"], ["A cat"]])
    assert not torch.equal(model.loss(queries, retrieved, packed, further=[objects]), model.loss(queries, retrieved, packed))
    scores = [[h.score for row in model.generate(queries, retrieved, 1, DECODING, f) for h in row] for f in ((), [objects])]
    assert scores[0] != scores[1]
