"""Captions a second under the EVCap release's rules of beam search: batched with a cache, against the release's own way.

The release's way: one image at a time, and every token runs the language model over the whole sequence of every beam. Both
sides decode the same prompts with the same LLaMA, small and of random weights: only shapes matter for the time. The sides
take turns, each repeat gives one ratio, and both must find the same hypotheses.

    python bench/release_decoding.py
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from evcap.evaluation.figures import spread, write_figures
from evcap.language.release_search import release_search

RESULTS = Path(__file__).parent / "results" / "release_decoding.json"
PROMPT = 66  # positions: BOS, 40 vectors and about 25 tokens of the paper's prompt


def release_way(
    llm: torch.nn.Module, prompt: torch.Tensor, stops: list[int], beams: int, max_length: int
) -> list[tuple[float, list[int]]]:
    """All hypotheses for one prompt (P,d), best first: (mean log-probability, tokens). No cache, one image."""
    live: list[tuple[float, list[int]]] = []  # sum of log-probabilities, tokens
    for _ in range(max_length):
        if live and all(tokens[-1] in stops for _, tokens in live):
            break
        going = [tokens for _, tokens in live if tokens[-1] not in stops] or [[]]
        words = torch.tensor(going, dtype=torch.long)
        sequences = torch.cat([prompt.expand(len(going), -1, -1), llm.get_input_embeddings()(words)], dim=1)
        scores = iter(llm(inputs_embeds=sequences, use_cache=False).logits[:, -1].float().log_softmax(-1))
        candidates = []  # (mean, sum, tokens)
        for total, tokens in live or [(0.0, [])]:
            if tokens and tokens[-1] in stops:
                candidates.append((total / len(tokens), total, tokens))
                continue
            values, words = next(scores).topk(beams)
            for value, word in zip(values.tolist(), words.tolist(), strict=True):
                candidates.append(((total + value) / (len(tokens) + 1), total + value, [*tokens, word]))
        candidates.sort(key=lambda c: -c[0])
        live = [(total, tokens) for _, total, tokens in candidates[:beams]]
    return sorted(((total / len(tokens), tokens) for total, tokens in live), key=lambda pair: -pair[0])


def random_llama(layers: int, width: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": width * 8 // 3, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
    config = LlamaConfig(vocab_size=32000, initializer_range=0.1, attn_implementation="eager", **sizes, **heads)
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def main(
    pictures: Annotated[int, typer.Option(help="Prompts that the batched side decodes at once.")] = 16,
    slow_pictures: Annotated[int, typer.Option(help="Prompts of these that the release's way decodes.")] = 4,
    layers: int = 4,
    width: int = 256,
    beams: int = 5,
    max_length: int = 32,
    repeats: int = 5,
    output: Annotated[Path, typer.Option(help="JSON file of the figures.")] = RESULTS,
) -> None:
    llm = random_llama(layers, width)
    prompts = torch.randn(pictures, PROMPT, width) * 0.1
    mask, stops = torch.ones(pictures, PROMPT, dtype=torch.bool), [13, 29889, 869]
    fast, slow = [], []
    for turn in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        ours = release_search(llm, prompts, mask, stops, beams, max_length)
        middle = time.perf_counter()
        theirs = [release_way(llm, prompt, stops, beams, max_length) for prompt in prompts[:slow_pictures]]
        if turn:
            fast.append(pictures / (middle - start))
            slow.append(slow_pictures / (time.perf_counter() - middle))
    equal = sum(
        [tokens for _, tokens in a] == [tokens for _, tokens in b] for a, b in zip(ours[:slow_pictures], theirs, strict=True)
    )
    ratios = [a / b for a, b in zip(fast, slow, strict=True)]
    figures = {
        "llama": {"layers": layers, "width": width, "vocabulary": 32000},
        "prompt_positions": PROMPT,
        "images": pictures,
        "pictures_release_way": slow_pictures,
        "beams": beams,
        "max_length": max_length,
        "captions_per_second": fast,
        "captions_per_second_release_way": slow,
        "ratios": ratios,
        "ratio_median": statistics.median(ratios),
        "pictures_with_equal_beams": f"{equal} of {slow_pictures}",
    }
    write_figures(output, figures)
    table = Table("decoding by the release's rules", "images", "captions/s, median", "lowest to highest")
    for label, count, rates in (
        ("batched, cached", pictures, fast),
        ("one image at a time, no cache", slow_pictures, slow),
        ("ratio", "", ratios),
    ):
        table.add_row(label, str(count), *spread(rates))
    console = Console()
    console.print(table)
    console.print(f"equal beams on both sides: {equal} of {slow_pictures} images; wrote {output}")


if __name__ == "__main__":
    typer.run(main)
