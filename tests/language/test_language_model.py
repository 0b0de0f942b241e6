"""Prompt, packing and the packed loss, against one plain forward pass for each caption."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_language
from torch.nn.functional import cross_entropy

from evcap.config import DecodingConfig

SHORT = DecodingConfig(beams=2, max_length=5)

NAMES = [["dog", "fire hydrant"], ["cat"], []]
CAPTIONS = [["A dog runs", "dogs"], ["A cat on a mat", "Cat", "the Cat sleeps"], ["x"]]


@pytest.fixture
def vectors():
    torch.manual_seed(3)
    return torch.randn(3, 5, 32)


def plain_losses(language, vectors, names, captions):
    """Losses of every token of every caption, each caption alone behind its own unpadded prompt; through `labels`."""
    tokenize, embed = language.ids, language.llm.get_input_embeddings()
    config, losses = language.config, []
    for row, listed, texts in zip(vectors, names, captions, strict=True):
        words = config.names.format(names=", ".join(listed) or "none") if config.names_in_prompt else ""
        head = embed(torch.tensor([language.tokenizer.bos_token_id, *tokenize(config.before)]))
        tail = embed(torch.tensor(tokenize(words + config.after)))
        prompt = torch.cat([head, row, tail])
        for text in texts:
            ids = torch.tensor(tokenize(f" {text}\n"))
            inputs = torch.cat([prompt, embed(ids)])[None]
            labels = torch.cat([torch.full((len(prompt),), -100), ids])[None]
            out = language.llm(inputs_embeds=inputs, labels=labels)
            each = cross_entropy(out.logits[0, len(prompt) - 1 : -1], ids, reduction="none")
            torch.testing.assert_close(each.mean(), out.loss)  # transformers' own loss is the mean of these
            losses.append(each)
    return losses


@torch.no_grad()
@pytest.mark.parametrize("names_in_prompt", [True, False])
@pytest.mark.parametrize("slots", [0, 60])
def test_packed_loss_equals_separate_passes(vectors, names_in_prompt, slots):
    language = tiny_language(names_in_prompt=names_in_prompt)
    packed = language.pack(CAPTIONS, slots)
    losses = language.token_losses(language.prompt(vectors, NAMES), packed)
    expected = plain_losses(language, vectors, NAMES, CAPTIONS)
    torch.testing.assert_close(losses[packed.segment > 0], torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert (losses[packed.segment == 0] == 0).all()
    mean = language.loss(language.prompt(vectors, NAMES), packed)
    torch.testing.assert_close(mean, torch.cat(expected).mean(), atol=1e-5, rtol=1e-5)


def test_gradients_of_the_packed_loss_equal_those_of_separate_passes(vectors):
    language = tiny_language()
    packed_input, plain_input = (vectors.clone().requires_grad_() for _ in range(2))
    language.loss(language.prompt(packed_input, NAMES), language.pack(CAPTIONS)).backward()
    torch.cat(plain_losses(language, plain_input, NAMES, CAPTIONS)).mean().backward()
    torch.testing.assert_close(packed_input.grad, plain_input.grad, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_of_the_prompt_changes_nothing(vectors):
    language = tiny_language()
    packed = language.pack(CAPTIONS)
    tight = language.token_losses(language.prompt(vectors, NAMES), packed)
    wide = language.prompt(vectors, NAMES, tail_slots=70)
    assert wide.mask.shape[1] > language.prompt(vectors, NAMES).mask.shape[1]
    torch.testing.assert_close(language.token_losses(wide, packed), tight, atol=1e-5, rtol=1e-5)
    for one in range(3):  # nor do the neighbours in the batch
        alone = language.pack([CAPTIONS[one]])
        losses = language.token_losses(language.prompt(vectors[one : one + 1], [NAMES[one]]), alone)
        length = losses.shape[1]
        torch.testing.assert_close(losses[0], tight[one, :length], atol=1e-5, rtol=1e-5)


def test_prompt_layout(vectors):
    language = tiny_language()
    prompt = language.prompt(vectors, NAMES)
    ids = language.ids
    tails = ["\nObjects: dog, fire hydrant.\nCaption:", "\nObjects: cat.\nCaption:", "\nObjects: none.\nCaption:"]
    head = [language.tokenizer.bos_token_id, *ids("Look: ")]
    assert prompt.embeddings.shape == (3, len(head) + 5 + max(map(len, tails)), 32)
    assert prompt.mask[:, -1].all()
    for row, mask, own, tail in zip(prompt.embeddings, prompt.mask, vectors, tails, strict=True):
        expected = torch.cat([language.embed(torch.tensor(head)), own, language.embed(torch.tensor(ids(tail)))])
        assert torch.equal(row[mask], expected)


def test_prompt_without_names_ignores_them(vectors):
    language = tiny_language(names_in_prompt=False)
    with_names, without = language.prompt(vectors, NAMES), language.prompt(vectors, [[], [], []])
    assert torch.equal(with_names.embeddings, without.embeddings)
    assert with_names.mask.all()
    assert language.widest_tail() == len("\nCaption:")


def test_widest_tail_is_wide_enough(vectors):
    language = tiny_language(names_tokens=30)
    many = [["x" * n for n in range(1, 9)], ["abc"] * 10, []]
    fixed = language.prompt(vectors, many, language.widest_tail())
    assert fixed.mask.shape[1] == 1 + len("Look: ") + 5 + language.widest_tail()


def test_names_are_cut_at_a_whole_name():
    language = tiny_language(names_tokens=len("\nObjects: dog, cat."))
    text = language.tokenizer.decode
    assert text(language.name_ids(["dog", "cat"])) == "\nObjects: dog, cat."
    assert text(language.name_ids(["dog", "cats"])) == "\nObjects: dog."
    assert text(language.name_ids(["dog", "a", "cat"])) == "\nObjects: dog, a."
    assert text(language.name_ids(["a name longer than the room"])) == "\nObjects: none."
    assert text(language.name_ids([])) == "\nObjects: none."
    assert tiny_language(names_tokens=3).name_ids(["dog"]) == []  # not even "none" fits


@given(st.lists(st.text("abc", min_size=1, max_size=12), max_size=12), st.integers(16, 60))
def test_name_list_keeps_the_longest_run_that_fits(names, room):
    language = tiny_language(names_tokens=room)
    kept = language.tokenizer.decode(language.name_ids(names))
    fits = [n for n in range(len(names) + 1) if len(listed(names[:n])) <= room]
    assert kept == listed(names[: max(fits)])


def listed(names):
    return f"\nObjects: {', '.join(names) or 'none'}."


LANGUAGE = tiny_language()


def unpack(language, packed):
    """Row by row, the captions that were packed, in order of their numbers."""
    rows = []
    for ids, segment, offset in zip(packed.ids, packed.segment, packed.offset, strict=True):
        row = {}
        for number in sorted(set(segment.tolist()) - {0}):
            here = segment == number
            assert offset[here].tolist() == list(range(int(here.sum())))
            row[number] = language.tokenizer.decode(ids[here])
        rows.append(row)
    return rows


def test_pack_ends_every_caption_in_a_newline():
    packed = LANGUAGE.pack([["one", " two "], ["three"]])
    assert packed.ids.shape == (2, len(" one\n two\n"))
    assert unpack(LANGUAGE, packed) == [{1: " one\n", 2: " two\n"}, {1: " three\n"}]


def test_pack_cuts_a_long_caption_and_still_ends_it():
    packed = LANGUAGE.pack([["abcdefghij", "b"]], max_tokens=5)
    assert unpack(LANGUAGE, packed) == [{1: " abc\n", 2: " b\n"}]


def test_pack_leaves_out_what_does_not_fit_whole():
    packed = LANGUAGE.pack([["abcd", "a long one", "e"]], slots=10)
    assert packed.ids.shape == (1, 10)
    assert unpack(LANGUAGE, packed) == [{1: " abcd\n", 3: " e\n"}]  # the third still finds room


@torch.no_grad()
def test_captions_left_out_and_empty_rows_do_not_count(vectors):
    packed = LANGUAGE.pack([["abc"], ["too long for it"], ["xyz"]], slots=6)
    assert unpack(LANGUAGE, packed)[1] == {}
    prompt = LANGUAGE.prompt(vectors, NAMES)
    two = plain_losses(LANGUAGE, vectors, NAMES, [["abc"], [], ["xyz"]])
    torch.testing.assert_close(LANGUAGE.loss(prompt, packed), torch.cat(two).mean(), atol=1e-5, rtol=1e-5)
    nothing = LANGUAGE.pack([["too long for it"]] * 3, slots=6)
    assert LANGUAGE.loss(prompt, nothing) == 0


def test_the_captions_tokens_are_those_that_decoding_gives_back(vectors):
    """Training and decoding agree on the stop token and on the space before the first word."""
    assert LANGUAGE.tokenizer.decode([LANGUAGE.stop]) == "\n"
    packed = LANGUAGE.pack([["A dog runs"]])
    assert LANGUAGE.tokenizer.decode(packed.ids[0, :-1], skip_special_tokens=True).strip() == "A dog runs"
    assert packed.ids[0, -1] == LANGUAGE.stop


def test_a_preset_may_end_captions_by_another_token():
    language = tiny_language(stop="..")  # of several tokens the last
    assert language.tokenizer.decode([language.stop]) == "."
    assert language.pack([["A dog"]]).ids[0, -1] == language.stop != LANGUAGE.stop
    for caption in (row[0] for row in language.decode(language.prompt(torch.randn(4, 3, 32), [[]] * 4), 1, SHORT)):
        assert language.stop not in caption.tokens
