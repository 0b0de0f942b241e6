"""The language model answers from what was said of the overview and of each place (ImageRAG's generation, in words)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from evcap.language.model import chat_tokens
from evcap.raster.geo import cell_words, to_thousandths, union

if TYPE_CHECKING:
    from evcap.gigapixel.ask.evidence import Evidence
    from evcap.gigapixel.ask.question import Question
    from evcap.language.model import LanguageModel
    from evcap.raster.raster import Raster

NEW_TOKENS = 48
NAMES = 5  # of a place that are told
INSTRUCTIONS = (
    "You answer a question about a large aerial picture. You cannot see it; you get descriptions of the whole and of places in "
    "it. Boxes are x1, y1, x2, y2 from 0 to 1000. Answer in one short sentence, from the descriptions alone."
)


class EvidenceReader:
    """Answers in words of the captioner's own language model, as it was before it learned to caption."""

    def __init__(self, language: LanguageModel):
        self._language = language

    def answer(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> str:
        """One line of text, the likeliest word after word."""
        llm = self._language.plain
        ids = torch.tensor([self._prompt(question, evidence, raster)], device=llm.device)
        tokenizer = self._language.tokenizer
        end = tokenizer.eos_token_id
        with torch.inference_mode():
            found = llm.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=end
            )
        text = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).strip()
        return text.split("\n")[0].strip()

    @torch.inference_mode()
    def choose(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> str:
        """The likeliest of the question's choices, as "(B) blue": by the mean log-probability of its tokens."""
        prompt = self._prompt(question, evidence, raster)
        scores, llm = [], self._language.plain
        for choice in question.choices:
            said = self._language.tokenizer(choice, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([prompt + said], device=llm.device)
            logits = llm(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            scores.append(logits.gather(1, ids[0, len(prompt) :, None]).mean().item())
        best = max(range(len(scores)), key=scores.__getitem__)
        return f"({chr(65 + best)}) {question.choices[best]}"

    def _prompt(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> list[int]:
        tokenizer = self._language.tokenizer
        told = "\n".join([*(_told(item, raster) for item in evidence), *_told_together(evidence, raster)])
        choices = "".join(f"\n({chr(65 + i)}) {choice}" for i, choice in enumerate(question.choices))
        turns = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": f"{told}\nQuestion: {question.text}{choices}"},
        ]
        return chat_tokens(tokenizer, turns)


def _told(item: Evidence, raster: Raster) -> str:
    """A line of the prompt: where, what was looked for, what is seen, which names were found."""
    names = f" ({', '.join(name for name, _ in item.names[:NAMES])})" if item.names else ""
    if item.path == "overview":
        return f"The whole picture: {item.caption}{names}"
    return f"Place for {item.phrase}, {_where(item.box, raster)}: {item.caption}{names}"


def _told_together(evidence: Sequence[Evidence], raster: Raster) -> list[str]:
    """Where all places lie, if there are two or more: the union of their boxes, as ImageRAG adds it to its cues."""
    boxes = np.array([item.box for item in evidence if item.path != "overview"])
    return [f"All places together: {_where(union(boxes), raster)}"] if len(boxes) > 1 else []


def _where(box: Sequence[int], raster: Raster) -> str:
    thousandths = " ".join(map(str, to_thousandths(box, raster.width, raster.height).tolist()))
    return f"{cell_words(box, raster.width, raster.height)} [{thousandths}]"
