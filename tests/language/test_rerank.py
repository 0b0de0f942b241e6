"""Choosing among the beams, with the real sentence embedder; similarities against loops over queries and captions."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_evcap
from torch import nn

from evcap.captioner import Captioner
from evcap.config import DecodingConfig
from evcap.errors import EvcapError
from evcap.language.model import Hypothesis
from evcap.language.phrases import EIGHT_BITS, PhraseModel
from evcap.language.rerank import BeamChoice
from evcap.language.sentences import SentenceEmbedder
from evcap.memory.names import NameFinder

TEXTS = ["A man rides a dragon", "A man rides a bike", "Two dogs run", "A dog runs on grass", "A dragon", "A man sits"]


@pytest.fixture(scope="module")
def choice() -> BeamChoice:
    torch.manual_seed(0)
    return BeamChoice(nn.Linear(384, 24).requires_grad_(False))


@pytest.fixture(scope="module")
def phrases() -> PhraseModel:
    torch.manual_seed(2)
    weights = torch.randn(4, 24).to(EIGHT_BITS)
    return PhraseModel(["a dragon", "rides a bike", "dogs", "sits"], weights, torch.zeros(24), "any")


@torch.no_grad()
def cosine(choice: BeamChoice, query: torch.Tensor, text: str) -> float:
    return nn.functional.cosine_similarity(query, choice._read._project(SentenceEmbedder()([text])[0]), dim=0).item()


def test_similarity_is_the_cosine_of_the_nearest_query(choice):
    torch.manual_seed(1)
    queries = torch.randn(2, 3, 24)
    for picture, row, texts in zip(
        queries, choice.similarity(queries, [TEXTS[:4], TEXTS[4:]]), (TEXTS[:4], TEXTS[4:]), strict=True
    ):
        expected = [max(cosine(choice, query, text) for query in picture) for text in texts]
        assert row.tolist() == pytest.approx(expected, abs=1e-5)


@given(
    scores=st.lists(st.floats(-5, 0, width=32), min_size=1, max_size=6, unique=True),
    names=st.lists(st.sampled_from(["dragon", "bike", "dog", "man", "grass"]), max_size=3, unique=True),
    likeness=st.sampled_from([0.0, 1.0, 1000.0]),
    fit=st.sampled_from([0.0, 1.0, 1000.0]),
    seed=st.integers(0, 99),
)
def test_all_come_back_and_those_that_say_the_first_name_lead(choice, phrases, scores, names, likeness, fit, seed):
    torch.manual_seed(seed)
    queries = torch.randn(1, 5, 24)
    row = [Hypothesis(text, score) for text, score in zip(TEXTS, sorted(scores, reverse=True), strict=False)]
    (ordered,) = choice(queries, [row], [names], DecodingConfig(itc_weight=likeness, phrase_weight=fit), phrases)
    assert sorted(h.text for h in ordered) == sorted(h.text for h in row)

    def says_the_first(hypothesis):
        said = {match.name for match in NameFinder(names).find(hypothesis.text)}
        return bool(names) and names[0] in said

    value = torch.tensor([h.score for h in row])
    if likeness:
        value += likeness * choice.similarity(queries, [[h.text for h in row]])[0]
    if fit:
        value += fit * phrases(queries, [[h.text for h in row]])[0]
    value = dict(zip(row, value.tolist(), strict=True))
    assert ordered == sorted(ordered, key=lambda h: (not says_the_first(h), -value[h]))


def test_a_renamed_thing_is_not_renamed_back(choice):
    """The image is exactly "A man rides a bike"; the memory calls that thing a dragon."""
    with torch.no_grad():
        queries = choice._read._project(SentenceEmbedder()(["A man rides a bike"]))[None]
    row = [Hypothesis("A man rides a dragon", -1.0), Hypothesis("A man rides a bike", -1.1)]
    alike, likeliest = DecodingConfig(itc_weight=100.0), DecodingConfig()
    assert choice(queries, [row], [["dragon"]], alike)[0][0].text == "A man rides a dragon"
    assert choice(queries, [row], [[]], alike)[0][0].text == "A man rides a bike"
    assert choice(queries, [row], [[]], likeliest)[0][0].text == "A man rides a dragon"


def test_wording_that_fits_goes_first(phrases):
    """An image whose key is the weights of "rides a bike", among captions of other likelihood; without a projection."""
    choice, queries = BeamChoice(None), phrases._weights[1].expand(1, 3, -1)
    row = [Hypothesis("A man sits", -1.0), Hypothesis("A man rides a bike", -1.1), Hypothesis("Two dogs run", -1.2)]
    wording = DecodingConfig(phrase_weight=10.0)
    assert choice(queries, [row], [[]], wording, phrases)[0][0].text == "A man rides a bike"
    assert choice(queries, [row], [[]], wording)[0][0].text == "A man sits"
    assert choice(queries, [row], [[]], DecodingConfig(), phrases)[0][0].text == "A man sits"


def test_a_preset_without_text_projection_cannot_weigh_likeness():
    model = tiny_evcap()
    model.preset = dataclasses.replace(model.preset, decoding=dataclasses.replace(model.preset.decoding, itc_weight=1.0))
    model.text_projection = None
    with pytest.raises(EvcapError, match="text_width"):
        Captioner(model)


def test_the_shipped_captioner_chooses_among_its_own_beams(captioner):
    """With the weights at 0 the beams in their order; with the preset's, the same beams, the chosen one first."""
    from places import EXAMPLES

    queries = captioner.query_features(sorted(EXAMPLES.glob("*.jpg"))[:2])
    preset = captioner.preset
    chosen = captioner.caption_features(queries, num_captions=5, beams=5, max_length=12)
    one = captioner.caption_features(queries, num_captions=1, beams=5, max_length=12)
    try:
        plain = dataclasses.replace(preset.decoding, itc_weight=0.0, phrase_weight=0.0)
        captioner.preset = dataclasses.replace(preset, decoding=plain)
        likeliest = captioner.caption_features(queries, num_captions=5, beams=5, max_length=12)
    finally:
        captioner.preset = preset
    names = [[n.name for n in row.names] for row in chosen]
    texts = [row.captions for row in likeliest]
    weights = preset.decoding
    choice = BeamChoice(captioner.model.text_projection)
    parts = zip(choice.similarity(queries, texts), captioner.phrases(queries, texts), strict=True)
    values = [weights.itc_weight * similar + weights.phrase_weight * fit for similar, fit in parts]
    for i, row in enumerate(likeliest):
        assert sorted(chosen[i].captions) == sorted(row.captions) and chosen[i].caption == one[i].caption
        said, said_now = ({m.name for m in NameFinder(names[i]).find(c.caption)} for c in (row, chosen[i]))
        assert said <= said_now
        place = row.captions.index(chosen[i].caption)
        newly_named = len(said_now & set(names[i][:2])) > len(said & set(names[i][:2]))
        assert newly_named or values[i][place] >= values[i][0] - 1e-5  # else only taken for fitting the image better
