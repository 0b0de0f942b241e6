"""Heads of regions: each pair of a region and a text by itself, chosen tags, the best of several texts."""

import torch
from torch import nn

from evcap.config import QFormerConfig
from evcap.regions.heads import QueryDecoder, RegionTextHead, TagHead, best_text, likeliest_tags, tags_above

SMALL = QFormerConfig(width=8, layers=2, heads=2, intermediate=16, dropout=0.1)


def test_the_decoder_is_its_formulas():
    """One query, one region, written out: cross-attention, add, LayerNorm, feed-forward, add, LayerNorm, twice."""
    torch.manual_seed(0)
    decoder = QueryDecoder(SMALL).eval()
    for tensor in decoder.parameters():
        nn.init.normal_(tensor, std=0.4)
    queries, context = torch.randn(1, 8), torch.randn(1, 5, 8)
    stream = queries[0]
    for layer in decoder.layers:
        attention, feed = layer["cross_attention"], layer["feed_forward"]
        mixed = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            keys, values = attention.key(context[0])[:, part], attention.value(context[0])[:, part]
            mixed.append(((keys @ attention.query(stream)[part]) / 2).softmax(0) @ values)
        stream = normed(stream + attention.out(torch.cat(mixed)), attention.norm)
        up = feed.up(stream)
        stream = normed(stream + feed.down(up * 0.5 * (1 + torch.erf(up / 2**0.5))), feed.norm)
    torch.testing.assert_close(decoder(queries, context)[0, 0], stream, atol=1e-5, rtol=1e-5)


def normed(x, norm):
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-12).sqrt() * norm.weight + norm.bias


def test_every_pair_of_region_and_text_is_scored_by_itself():
    torch.manual_seed(1)
    regions, texts = torch.randn(3, 4, 6), torch.randn(5, 7)
    for kind in (TagHead, RegionTextHead):
        head = kind(6, 7, SMALL).eval()
        scores = head(regions, texts)
        assert scores.shape == (3, 5)
        for region in range(3):
            for text in range(5):
                alone = head(regions[region : region + 1], texts[text : text + 1])
                torch.testing.assert_close(scores[region, text], alone[0, 0])


def test_the_score_of_a_text_is_bounded_and_begins_as_siglip_does():
    torch.manual_seed(2)
    head = RegionTextHead(6, 7, SMALL).eval()
    scores = head(torch.randn(2, 4, 6) * 100, torch.randn(3, 7) * 100)
    assert (scores.abs() <= head.score.weight.norm() + 1e-6).all()  # the decoder's output has length 1
    torch.testing.assert_close(head.logits(torch.tensor([0.0, 1.0])), torch.tensor([-10.0, 0.0]))


def test_tags_above_a_threshold_and_the_best_of_several_texts():
    logits = torch.tensor([[2.0, -1.0, 0.9], [-3.0, -3.0, -3.0]])
    assert tags_above(logits, ["dog", "cat", "tree"], 0.7) == [["dog", "tree"], []]
    logits = torch.tensor([[1.0, -1.0, 2.0], [-3.0, -3.0, -3.0], [1.5, 1.0, 1.5]])
    assert likeliest_tags(logits, ["dog", "cat", "tree"], 0.7) == [["tree", "dog"], [], ["dog", "tree", "cat"]]
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.4, 0.8]])
    torch.testing.assert_close(best_text(scores, [2, 1]), torch.tensor([[0.9, 0.3], [0.5, 0.8]]))
