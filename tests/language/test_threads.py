"""One model, many threads: what each of them gets is what it would get alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import tiny_language

from evcap.config import DecodingConfig

THREADS, CALLS = 8, 200
LENGTHS = (2, 4, 7, 9)


def in_threads(work, calls):
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, calls))


@pytest.mark.parametrize("search", ["beam", "release"])
def test_decoding(search):
    language = tiny_language(0)
    torch.manual_seed(0)
    prompts = [language.prompt(torch.randn(1 + n % 3, 4, 32), [["dog"], [], ["cat", "bus"]][: 1 + n % 3]) for n in range(11)]

    def work(call: int):
        decoding = DecodingConfig(beams=1 + call % 4, max_length=LENGTHS[call % len(LENGTHS)], search=search)
        return [[(h.text, h.score) for h in row] for row in language.decode(prompts[call % 11], 1, decoding)]

    alone = [work(call) for call in range(CALLS)]
    assert in_threads(work, range(CALLS)) == alone
    assert len({str(row) for row in alone}) > 20  # or the threads had nothing to mix up


def test_captioning_beside_talking():
    """Adapters stay on for who captions while the same weights answer without them."""
    language = tiny_language(1, lora_rank=2)
    torch.manual_seed(1)
    for module in language.llm.modules():
        if hasattr(module, "up"):
            torch.nn.init.normal_(module.up, std=0.5)
    prompt, ids = language.prompt(torch.randn(1, 4, 32), [["dog"]]), torch.arange(3, 15)[None]

    @torch.inference_mode()
    def work(call: int):
        if call % 2:
            return language.plain(ids).logits.sum().item()
        return language.decode(prompt, 2, DecodingConfig(beams=3, max_length=8))[0][0].text

    caption, talk = work(0), work(1)
    assert in_threads(work, range(60)) == [caption, talk] * 30
    assert language.llm(ids).logits.sum().item() != pytest.approx(talk)


def test_a_captioner(captioner, examples):
    """The shipped one, its index and what chooses among the beams included; other lengths for each caption."""
    features = captioner.query_features(examples[:4])

    def work(call: int):
        asked = features[call % 4 : call % 4 + 1]
        (row,) = captioner.caption_features(asked, beams=2, min_length=call % 3, max_length=LENGTHS[call % len(LENGTHS)])
        return row.captions, row.names

    alone = [work(call) for call in range(THREADS)]
    captioner.memory._index = None  # made by whichever thread searches first
    assert in_threads(work, range(THREADS)) == alone
