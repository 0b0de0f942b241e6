"""The generator answers from the overview and the places that were found (ImageRAG's generation, arXiv 2411.07688).

EVCap's language model reads what was said of each, BLIP-2 too, with the overview before it; chat models look at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image

from evcap.errors import EvcapError
from evcap.language.encoder_decoder import EncoderDecoderModel
from evcap.language.model import chat_tokens
from evcap.raster.geo import cell_words, to_thousandths, union

if TYPE_CHECKING:
    from evcap.captioner import Captioner
    from evcap.generators.generator import ChatGenerator, Part
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
LOOK = (
    "You answer a question about a large aerial image. You see the whole image first, then parts of it. Boxes are [x1, y1, x2, "
    "y2] from 0 to 1000 in the whole image."
)


class Reader(Protocol):
    """evidence: the overview first, then the places, with their captions and names."""

    def answer(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> str:
        """One line of text."""

    def choose(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> str:
        """One of the question's choices, as "(B) blue"."""


def open_reader(captioner: Captioner) -> Reader:
    """The reader that fits a captioner's generator."""
    kind = captioner.generator_config.kind
    if kind == "evcap":
        if isinstance(captioner.model.language, EncoderDecoderModel):
            raise EvcapError("an encoder-decoder language model writes captions only; name another one to answer: --generator")
        return EvidenceReader(captioner.model.language)
    return FeatureReader(captioner) if kind == "blip2" else ImageReader(captioner.generator)


def image_of(raster: Raster, box: Sequence[int], side: int) -> Image.Image:
    """A box as an image, its longer side at most `side` pixels."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(1.0, side / max(width, height))
    return Image.fromarray(raster.read(box, (max(1, round(width * scale)), max(1, round(height * scale))))[0])


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
        return _lettered(question.choices, max(range(len(scores)), key=scores.__getitem__))

    def _prompt(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> list[int]:
        tokenizer = self._language.tokenizer
        told = _descriptions(evidence, raster)
        turns = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": f"{told}\nQuestion: {question.text}{_choices(question)}"},
        ]
        return chat_tokens(tokenizer, turns)


class FeatureReader:
    """BLIP-2 looks at the overview, as query features, and reads the descriptions before the question, as it was asked in
    its paper: "Question: ... Answer:"."""

    def __init__(self, captioner: Captioner):
        self._captioner = captioner

    def answer(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> str:
        said = self._captioner.generator.say(*self._asked(question, evidence, raster), NEW_TOKENS)
        return said.split("\n")[0].strip()

    def choose(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> str:
        """The likeliest of the choices: by the mean log-probability of its tokens."""
        scores = self._captioner.generator.scores(*self._asked(question, evidence, raster), question.choices)
        return _lettered(question.choices, max(range(len(scores)), key=scores.__getitem__))

    def _asked(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> tuple[torch.Tensor, str]:
        whole = image_of(raster, (0, 0, raster.width, raster.height), self._captioner.image_side)
        text = f"{_descriptions(evidence, raster)}\nQuestion: {question.text}{_choices(question)} Answer:"
        return self._captioner.query_features([whole])[0], text


class ImageReader:
    """A chat model is shown the overview and each place, with box, caption and names as text beside it, and two or more
    places once more as one: the union of their boxes, which alone stands for them where a number is asked for."""

    def __init__(self, generator: ChatGenerator):
        self._generator = generator

    def answer(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> str:
        parts = [*self._shown(question, evidence, raster), f"Question: {question.text}\nAnswer in one short sentence."]
        return self._generator.reply(parts, NEW_TOKENS).split("\n")[0].strip()

    def choose(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> str:
        last = chr(64 + len(question.choices))
        ask = f"Question: {question.text}{_choices(question)}\nAnswer with one letter, from A to {last}, alone."
        parts = [*self._shown(question, evidence, raster), ask]
        return _lettered(question.choices, self._generator.pick(parts, len(question.choices)))

    def _shown(self, question: Question, evidence: Sequence[Evidence], raster: Raster) -> list[Part]:
        side = self._generator.side
        whole, places = evidence[0], list(evidence[1:])
        parts: list[Part] = [LOOK, image_of(raster, whole.box, side), _told(whole, raster)]
        boxes = [item.box for item in places]
        together = tuple(union(np.array(boxes)).tolist()) if len(boxes) > 1 else None
        if together and question.kind == "count":
            places = []
        parts += ["Additional information, parts of the image:"] if places or together else []
        for number, item in enumerate(places, 1):
            parts += [f"{number}. {_told(item, raster)}", image_of(raster, item.box, side)]
        if together:
            parts += [f"{len(places) + 1}. All places together: {_where(together, raster)}", image_of(raster, together, side)]
        return parts


def _descriptions(evidence: Sequence[Evidence], raster: Raster) -> str:
    return "\n".join([*(_told(item, raster) for item in evidence), *_told_together(evidence, raster)])


def _choices(question: Question) -> str:
    return "".join(f"\n({chr(65 + i)}) {choice}" for i, choice in enumerate(question.choices))


def _lettered(choices: Sequence[str], place: int) -> str:
    return f"({chr(65 + place)}) {choices[place]}"


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
