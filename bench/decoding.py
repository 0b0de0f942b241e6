"""Captions a second: batched beam search with a shared-prompt key/value cache, against one photo at a time without a cache.

Both sides use the same weights, prompts, beams and rules of the search. The other side is the way of the EVCap release:
one photo, all beams in one batch, and for every token the whole sequence anew. Looking is not timed: query features,
names and prompts are computed once, before, and both sides only decode. The cacheless side runs on a part of the photos,
for it is slow; rates are captions per second. The sides take turns, and each repeat gives one ratio.

Both are to find the same captions; the share of equal ones is reported.

    python bench/decoding.py --images FOLDER
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from evcap.captioner import Captioner
from evcap.config import DecodingConfig
from evcap.errors import EvcapError
from evcap.evaluation.figures import spread, write_figures
from evcap.images.opening import find_images
from evcap.language.model import LanguageModel, Prompt
from evcap.model.name_fusion import name_tokenizer

RESULTS = Path(__file__).parent / "results" / "decoding.json"


@torch.inference_mode()
def make_prompts(captioner: Captioner, photos: list[Path]) -> Prompt:
    """Prompts of all photos, through the whole chain up to the language model."""
    queries = captioner.query_features(photos)
    names = [[n.name for n in row] for row in captioner.retrieve(queries)]
    vectors = captioner.model.visual_vectors(queries, name_tokenizer()(names))
    return captioner.model.language.prompt(vectors, names)


@torch.inference_mode()
def ours(language: LanguageModel, prompts: Prompt, decoding: DecodingConfig, batch: int) -> list[str]:
    captions = []
    for start in range(0, len(prompts.mask), batch):
        part = Prompt(prompts.embeddings[start : start + batch], prompts.mask[start : start + batch])
        captions += [row[0].text for row in language.decode(part, 1, decoding)]
    return captions


@torch.inference_mode()
def without_cache(language: LanguageModel, prompts: Prompt, decoding: DecodingConfig) -> list[str]:
    """One photo after the other; every step runs the language model over prompt and tokens of every beam from the start."""
    captions = []
    for embeddings, mask in zip(prompts.embeddings, prompts.mask, strict=True):
        tokens = beams_from_scratch(language, embeddings[mask], decoding)
        captions.append(language.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return captions


def beams_from_scratch(language: LanguageModel, prompt: torch.Tensor, decoding: DecodingConfig) -> list[int]:
    """The best hypothesis for one prompt (P,d), by the rules of evcap.language.beam_search."""
    beams, stop = decoding.beams, language.stop
    live, done = [(0.0, [])], []
    for length in range(1, decoding.max_length + 1):
        if len(done) >= beams and max(done)[0] >= live[0][0] / (length - 1) ** decoding.length_penalty:
            break
        tokens = torch.tensor([row for _, row in live], dtype=torch.long)
        sequences = torch.cat([prompt.expand(len(live), -1, -1), language.embed(tokens).to(prompt.dtype)], dim=1)
        hidden = language.llm.model(inputs_embeds=sequences, use_cache=False).last_hidden_state[:, -1]
        scores = language.llm.lm_head(hidden).float().log_softmax(-1)
        if length <= decoding.min_length:
            scores[:, stop] = -torch.inf
        best, flat = (scores + torch.tensor([[total] for total, _ in live])).flatten().topk(2 * beams)
        grown = [(total, *divmod(place, scores.shape[1])) for total, place in zip(best.tolist(), flat.tolist(), strict=True)]
        for total, parent, word in grown[:beams]:
            if word == stop:
                done.append((total / length**decoding.length_penalty, live[parent][1]))
        live = [(total, [*live[parent][1], word]) for total, parent, word in grown if word != stop][:beams]
    return max(done or [(0.0, live[0][1])])[1]


def timed(function, *arguments) -> tuple[list[str], float]:
    """Captions and captions a second."""
    start = time.perf_counter()
    captions = function(*arguments)
    return captions, len(captions) / (time.perf_counter() - start)


def main(
    images: Annotated[Path, typer.Option(help="Folder with the photos.")],
    preset: Annotated[str, typer.Option(help="Shipped preset or YAML file.")] = "embedded",
    photos: Annotated[int, typer.Option(help="Photos that the cached side captions.")] = 64,
    slow_photos: Annotated[int, typer.Option(help="Photos of these that the cacheless side captions.")] = 8,
    repeats: Annotated[int, typer.Option(help="Pairs of runs.")] = 3,
    beams: int = 5,
    batch_size: int = 16,
    output: Annotated[Path, typer.Option(help="JSON file of the figures.")] = RESULTS,
) -> None:
    files = find_images([str(images)])[:photos]
    captioner = Captioner.load(preset)
    language = captioner.model.language
    decoding = dataclasses.replace(captioner.preset.decoding, beams=beams)
    prompts = make_prompts(captioner, files)
    few = Prompt(prompts.embeddings[:slow_photos], prompts.mask[:slow_photos])
    ours(language, prompts, dataclasses.replace(decoding, max_length=2), batch_size)  # warm up both
    without_cache(language, few, dataclasses.replace(decoding, max_length=2))
    fast, slow = [], []
    for _ in range(repeats):
        captions, rate = timed(ours, language, prompts, decoding, batch_size)
        fast.append(rate)
        plain, rate = timed(without_cache, language, few, decoding)
        slow.append(rate)
    ratios = [a / b for a, b in zip(fast, slow, strict=True)]
    equal = sum(a == b for a, b in zip(captions, plain, strict=False)) / len(plain)
    figures = {
        "photos": len(files),
        "photos_without_cache": len(plain),
        "beams": beams,
        "max_length": decoding.max_length,
        "batch_size": batch_size,
        "prompt_positions": prompts.mask.shape[1],
        "captions_per_second": fast,
        "captions_per_second_without_cache": slow,
        "ratios": ratios,
        "ratio_median": statistics.median(ratios),
        "share_of_equal_captions": equal,
        "different_captions": [pair for pair in zip(captions, plain, strict=False) if pair[0] != pair[1]],
    }
    write_figures(output, figures)
    table = Table("decoding", "photos", "captions/s, median", "lowest to highest")
    for label, count, rates in (
        ("batched, shared-prompt cache", len(files), fast),
        ("one at a time, no cache", len(plain), slow),
        ("ratio", "", ratios),
    ):
        table.add_row(label, str(count), *spread(rates))
    console = Console()
    console.print(table)
    console.print(f"equal captions on both sides: {equal:.0%} of {len(plain)}; wrote {output}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except EvcapError as error:
        raise SystemExit(f"error: {error}") from None
