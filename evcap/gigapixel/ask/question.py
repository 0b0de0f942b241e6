"""What a question asks of a large picture: its kind, the ground targets it names, its choices (ImageRAG's module G)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from evcap.errors import EvcapError
from evcap.gigapixel.ask.chunks import noun_chunks, seems_english

Kind = Literal["presence", "count", "where", "open"]
Backend = Callable[[str], list[str]]


class NoPhrases(Exception):
    """A language model gave no usable phrases; says why in one line. The question is then analysed without it."""


@dataclass(frozen=True)
class Question:
    """A question, taken apart.

    text: as asked, without choices. kind: what would answer it; "open" is all that is no yes or no about something
    being there, no number and no place. phrases: at most 5 ground targets, lower-case, the words of the question.
    choices: the texts behind (A), (B), ... in that order. note: one line for the user, or "". doubt: why an answer would
    mislead, or "".
    """

    text: str
    kind: Kind
    phrases: list[str]
    choices: list[str] = field(default_factory=list)
    note: str = ""
    doubt: str = ""


def check_understood(question: Question) -> None:
    """Raises EvcapError for a question that would get a plain answer to what it does not ask. One with choices is read by the
    language model, and chosen for in any case."""
    if question.doubt and not question.choices:
        raise EvcapError(f"'{question.text}' was not understood: {question.doubt}")


def analyse(question: str, backend: Backend | None = None, choices: Sequence[str] = ()) -> Question:
    """Take a question apart. Without a noun in it `phrases` is empty, and there is nothing to look for.

    backend: question -> phrases, by default noun chunks, which need neither a model nor a network; `phrase_models` has
    language models. If one gives nothing usable the chunks stand in, and `note` says so. choices: of a multiple-choice
    question, with or without "(A)" before each; by default those that the text itself ends in.
    Raises EvcapError for a question without a word in it, and what the backend raises for settings that are wrong.
    """
    text, found = split_choices(" ".join(question.split()))
    choices = [_CHOICE.sub("", choice, count=1).strip() for choice in choices] or found
    if not re.search(r"\w", text):
        raise EvcapError('the question is empty; ask something like "Is there an airplane?"')
    note = ""
    try:
        phrases = noun_chunks(text) if backend is None else backend(text)
    except NoPhrases as reason:
        phrases, note = noun_chunks(text), f"{reason}; the nouns of the question are searched instead"
    return Question(text, kind_of(text), phrases, choices, note, _doubt(text, backend is None or bool(note)))


# "no. 5", "no-fly" and "whether or not" deny nothing
_NEGATION = re.compile(
    r"(?<![\w-])(?:no(?!\.? ?\d)|not|without|never|none|neither|nor|nothing|nobody|nowhere|cannot|lacks?|lacking|absent|absence"
    r"|except|excluding|devoid of|free of|other than)(?![\w-])|n['’]t\b|\b(?:isnt|arent|doesnt|dont|cant|wont)\b"
)


def _doubt(text: str, by_nouns: bool) -> str:
    """Why a question is not understood, or "". by_nouns: its own words are searched, no model has read it."""
    lower = re.sub(r"\bwhether or not\b", "whether", text.lower())
    if found := _NEGATION.search(lower):
        return f"what is not there ('{found[0]}') cannot be looked for; ask whether or where something is there"
    if by_nouns and not seems_english(text):
        return "it does not seem to be English; ask in English, or let an endpoint read it (--phrases-by endpoint)"
    return ""


_CHOICE = re.compile(r"^\s*(?:\(([A-Z])\)|([A-Z])[).:](?=\s))\s*")
_MARK = re.compile(r"(?:^|(?<=\s))(?:\(([A-Z])\)|([A-Z])[).](?=\s))")


def split_choices(text: str) -> tuple[str, list[str]]:
    """("Which? (A) red (B) blue") -> ("Which?", ["red", "blue"]). Letters must be A, B, ... in order, two or more."""
    marks = [match for match in _MARK.finditer(text)]
    letters = [match[1] or match[2] for match in marks]
    starts = [i for i, letter in enumerate(letters) if letter == "A"]
    for start in reversed(starts):
        if len(letters) - start >= 2 and letters[start:] == [chr(65 + i) for i in range(len(letters) - start)]:
            edges = [*marks[start:], None]
            pairs = zip(edges, edges[1:], strict=False)
            choices = [text[mark.end() : following.start() if following else None].strip(" ,;") for mark, following in pairs]
            return text[: marks[start].start()].strip(), choices
    return text, []


_IMAGE = r"(?:image|picture|photo|photograph|scene|map|view|tile|raster|area|region|it|this|that)"
_COMPARES = re.compile(
    r"\b(?:more|less|fewer|greater|larger|smaller|bigger|higher|wider|longer) (?:\S+ ){0,6}than\b"
    r"|\bequals?\b|\bas (?:many|much|large|big)\b|\bat (?:least|most) \w+|\bexactly\b"
)
_COUNTS = re.compile(r"\bhow many\b|(?<!\ba )\b(?:number|amount|count) of\b|\bcount\b(?! of)|\bhow often\b")
_PLACES = re.compile(
    r"\bwhere(?:'s|’s| (?:is|are|was|were|can|could|do|does|exactly|in)\b)|^where\b|^(?:locate|find|point (?:out|to)|show me)\b"
    r"|\b(?:location|position|coordinates|whereabouts) of\b"
    r"|\b(?:in|on|at) (?:which|what) (?:\w+ )?(?:part|area|corner|region|side|section|place|location)\b"
)
_ASKS = re.compile(r"\b(?:what|which|who|whose|how|why|when)\b")
_PRESENCE = re.compile(
    r"\b(?:is|are|was|were) there\b|\bthere (?:is|are)\b"
    r"|^any\b|\bany\b.*\b(?:here|visible|present|in sight)\b"
    r"|^(?:is|are|was|were)\b.*\b(?:present|visible|seen|in sight|to be seen)\b"
    rf"|^(?:does|do)\b.*\b{_IMAGE}\b.*\b(?:contain|include|show|depict|feature|have)\b"
    r"|^(?:do|can|could) (?:you|we|i|one|anyone) (?:see|find|spot|detect|make out|observe|recognise|recognize)\b"
)


def kind_of(text: str) -> Kind:
    """What would answer the question: yes or no about something being there, a number, a place, or anything else."""
    lower = _without_opening(text.lower())
    if _COMPARES.search(lower):
        return "open"
    if _COUNTS.search(lower):
        return "count"
    if _PLACES.search(lower):
        return "where"
    if not _ASKS.search(lower) and _PRESENCE.search(lower):
        return "presence"
    return "open"


def _without_opening(lower: str) -> str:
    """The question without "in this picture, " or "please " before it."""
    return re.sub(r"^(?:(?:in|on|from|within|looking at|according to|based on)\b[^,?]*, *|please,? )+", "", lower.strip())
