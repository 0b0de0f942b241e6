"""Name fusion: BERT's embeddings and word pieces, and who sees whom in the stream of T_obj and Q."""

import dataclasses

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from qformer_reference import randomise, to_blip2, written_out
from tiny import tiny_preset
from transformers import BertConfig, BertModel, Blip2QFormerConfig, Blip2QFormerModel

from evcap.config import LanguageConfig, QFormerConfig
from evcap.model.name_fusion import MAX_PIECES, NameEmbeddings, NameFusion, name_tokenizer

CLS, SEP, PAD = 101, 102, 0
BATCH = [["frisbee", "traffic light"], ["dog"], []]
TOKENIZE = name_tokenizer()


@pytest.fixture
def fusion() -> NameFusion:
    torch.manual_seed(0)
    config = QFormerConfig(width=24, layers=4, heads=3, intermediate=40, cross_attention_every=2)
    preset = tiny_preset(LanguageConfig(kind="none", hidden=8, before="", after=""))
    return randomise(NameFusion(dataclasses.replace(preset, name_qformer=config, vocab_size=30522))).eval()


@pytest.fixture
def queries():
    torch.manual_seed(1)
    return torch.randn(3, 6, 24)


@torch.no_grad()
def test_embeddings_are_berts():
    bert = BertModel(BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=2)).eval()
    theirs = randomise(bert.embeddings)
    ours = NameEmbeddings(50, 24, eps=1e-12)
    ours.word.weight.copy_(theirs.word_embeddings.weight)
    ours.position.weight.copy_(theirs.position_embeddings.weight + theirs.token_type_embeddings.weight[0])
    ours.norm.load_state_dict(theirs.LayerNorm.state_dict())
    ids = torch.randint(50, (3, 9))
    torch.testing.assert_close(ours(ids), theirs(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_equals_transformers_layers_with_two_feed_forwards(fusion, queries):
    """BLIP-2's layers with a text branch; they mask nothing in self-attention here and look at the names as at an image."""
    names = TOKENIZE(BATCH)
    ids, mask = names.ids, names.mask
    config = Blip2QFormerConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=40,
        encoder_hidden_size=24,
        use_qformer_text_input=True,
    )
    blip2 = Blip2QFormerModel(config).eval()
    missing, unexpected = blip2.load_state_dict(to_blip2(fusion.qformer), strict=False)
    assert not unexpected  # missing: the norm of the queries and the last text feed-forward
    assert all(m.startswith(("layernorm.", "encoder.layer.3.intermediate.", "encoder.layer.3.output.")) for m in missing)
    stream = torch.cat([fusion.qformer.queries.expand(3, -1, -1), queries], dim=1)
    hidden = torch.finfo(torch.float32).min
    expected = blip2.encoder(
        stream,
        encoder_hidden_states=fusion.embeddings(ids),
        encoder_attention_mask=torch.zeros(3, 1, 1, ids.shape[1]).masked_fill(~mask[:, None, None], hidden),
        query_length=3,
    ).last_hidden_state[:, :3]
    torch.testing.assert_close(fusion(names, queries), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_equals_loops_over_heads_and_positions(fusion, queries):
    names = TOKENIZE(BATCH)
    ids, mask = names.ids, names.mask
    expected = written_out(fusion.qformer, fusion.embeddings(ids), mask, queries)
    torch.testing.assert_close(fusion(names, queries), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_longer_names_of_a_neighbour_change_nothing(fusion, queries):
    together = fusion(TOKENIZE(BATCH), queries)
    for n, names in enumerate(BATCH):
        alone = fusion(TOKENIZE([names]), queries[n : n + 1])
        torch.testing.assert_close(alone[0], together[n], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_names_their_order_and_the_picture_all_count(fusion, queries):
    def features(names, q=queries[:1]):
        return fusion(TOKENIZE([names]), q)

    base = features(["dog", "cat"])
    assert not torch.allclose(base, features(["dog", "car"]), atol=1e-3)
    assert not torch.allclose(base, features(["cat", "dog"]), atol=1e-3)
    assert not torch.allclose(base, features(["dog", "cat"], queries[1:2]), atol=1e-3)


@torch.no_grad()
def test_queries_of_the_picture_are_a_set(fusion, queries):
    names = TOKENIZE(BATCH)
    torch.testing.assert_close(fusion(names, queries.flip(1)), fusion(names, queries), atol=1e-5, rtol=1e-5)


def test_known_word_pieces():
    names = TOKENIZE([["frisbee", "tree", "teddy bear"], ["fire-hydrant", "woman"], []])
    ids, mask = names.ids, names.mask
    assert ids.tolist() == [
        [CLS, 10424, 2483, 11306, SEP, 3392, SEP, 11389, 4562, SEP],
        [CLS, 2543, 1011, 26018, 3372, SEP, 2450, SEP, PAD, PAD],
        [CLS, SEP] + [PAD] * 8,
    ]
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert torch.equal(mask, ids != PAD)


def test_case_and_accents_are_folded():
    assert TOKENIZE([["Café"]]).ids.tolist() == TOKENIZE([["cafe"]]).ids.tolist()


NAMES = st.lists(st.text("abcdefghij -'é", min_size=1, max_size=12).filter(str.strip), max_size=8)


@given(st.lists(NAMES, min_size=1, max_size=4))
@example([["a" * 300, "b"]])
def test_a_row_is_its_names_one_by_one_with_separators(rows):
    names = TOKENIZE(rows)
    ids, mask = names.ids, names.mask
    assert ids.shape == mask.shape == (len(rows), mask.sum(1).max())
    for row, visible, names in zip(ids, mask, rows, strict=True):
        expected = [CLS]
        for name in names:
            expected += TOKENIZE([[name]]).ids[0, 1:].tolist()  # a single name is [CLS] pieces [SEP]
        assert row[visible].tolist() == (expected if names else [CLS, SEP])
        assert (row[~visible] == PAD).all()
        assert visible[: len(expected)].all()  # padding comes last


def test_long_lists_are_cut_and_still_end_in_a_separator():
    names = TOKENIZE([["zebra"] * 200, ["dog"]])
    ids, mask = names.ids, names.mask
    assert ids.shape == (2, MAX_PIECES) and ids[0, -1] == SEP and mask[0].all()
    assert mask[1].sum() == 3
