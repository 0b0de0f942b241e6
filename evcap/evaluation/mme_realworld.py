"""MME-RealWorld-RS (Zhang et al. 2024, arXiv 2408.13257): its questions, and the letter that a reply means.

Each question has five choices, "(A) ..." to "(E) ...". Files with the fields `gt_toi` and `img_size`, as the ImageRAG
release (arXiv 2411.07688) gives them, also say where the answer is to be seen.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from evcap.errors import EvcapError
from evcap.text_files import LARGEST_JSON, one_line, read_text

# What introduces an answer: our own list, not the strings of a published scorer, which are not known to us.
INTRODUCTIONS = (
    "The best answer is",
    "The correct answer is",
    "The right answer is",
    "The final answer is",
    "The answer is",
    "The correct option is",
    "My answer is",
    "Answer:",
    "Option:",
)
# The reference lost four of its list: missing commas made one long string of each two neighbours, which no reply holds.
LOST = ("The best option is", "The right option is", "Best answer:", "Best option:")
WORDY = 10  # to the reference a reply of more words without a capital A to E is none


def _any_of(texts: tuple[str, ...], flags: int = 0) -> re.Pattern:
    return re.compile("|".join(re.escape(text) for text in texts), flags)


_INTRODUCTION = _any_of(INTRODUCTIONS + LOST, re.IGNORECASE)
_REFERENCE_INTRODUCTION = _any_of(INTRODUCTIONS)
_CHOICE = re.compile(r"\s*\(([A-E])\)\s*(.*?)\s*", re.DOTALL)
_LONE = re.compile(r"\W*([A-Ea-e])\W*")  # the whole reply
_BRACKETED = re.compile(r"\(([A-E])\)")
# a letter that is a word; "A" before a small letter is an article unless a reason or a verb follows
_WORD = re.compile(r"(?<![\w'])(?:[B-E]|A(?!\s+(?!is\b|because\b|since\b|as\b|or\b|and\b)[a-z]))(?![\w'])")


@dataclass(frozen=True)
class Question:
    """One question. choices: letter -> text. truths: the letters that are right, nearly always one.

    target: x1,y1,x2,y2 of what is asked about, and size: width and height of the image, in pixels, where the file has them.
    """

    id: str
    image: str
    text: str
    choices: dict[str, str]
    truths: tuple[str, ...]
    category: str
    subtask: str
    task: str
    target: tuple[float, ...] | None = None
    size: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Prediction:
    """A reply to a question, and the boxes (x1,y1,x2,y2 in pixels of the image) that were looked at, best first."""

    output: str
    boxes: tuple[tuple[float, ...], ...] = ()


def read_reply(reply: str, choices: dict[str, str], parity: bool = False) -> str:
    """The letter A to E that a free reply means, "" if none can be told.

    What follows the last introduction ("The answer is") counts, if there is one. Then the first that applies: a reply that
    is one letter, a letter in brackets, a letter that is a word, the only choice whose text stands in the reply or holds it.

    parity: the rule of the ImageRAG release, for scores that are compared with its own. Some introductions are lost (`LOST`)
    and capitals count in them, any capital A to E is the answer though it begins a word ("Based" is B), a longer reply
    without one is none, a shorter one means the first choice that holds it, the empty reply too.
    """
    introductions = list((_REFERENCE_INTRODUCTION if parity else _INTRODUCTION).finditer(reply))
    text = reply[introductions[-1].end() :].strip() if introductions else reply.strip()
    return _reference_letter(text, choices) if parity else _letter(text, choices)


def _reference_letter(text: str, choices: dict[str, str]) -> str:
    if capital := re.search("[A-E]", text):
        return capital[0]
    if len(text.split()) > WORDY:
        return ""
    return next((letter for letter, choice in choices.items() if text.lower() in f"({letter}) {choice}".lower()), "")


def _letter(text: str, choices: dict[str, str]) -> str:
    if (lone := _LONE.fullmatch(text)) and lone[1].upper() in choices:
        return lone[1].upper()
    for letter in (*_BRACKETED.findall(text), *_WORD.findall(text)):
        if letter in choices:
            return letter
    said = _plain(text)
    texts = {letter: _plain(choice) for letter, choice in choices.items()}
    for fits in (lambda choice: choice == said, lambda choice: f" {choice} " in f" {said} ", lambda choice: said in choice):
        found = [letter for letter, choice in texts.items() if said and choice and fits(choice)]
        if found:
            return found[0] if len(found) == 1 else ""
    return ""


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a JSON list or of JSON lines, in the file's order. Raises EvcapError that names what is wrong."""
    questions = [_question(row, where) for row, where in _rows(Path(path))]
    _refuse_twice([question.id for question in questions], path)
    return questions


def read_predictions(path: str | Path, questions: list[Question]) -> dict[str, Prediction]:
    """Question id -> prediction, from JSON lines with `Question_id`, `output` and, if there are any, `boxes`.

    Not every question needs one. Raises EvcapError for a line that cannot be used, an id that stands twice or is none of
    the questions'.
    """
    rows = [(_text(row, "Question_id", where), _prediction(row, where), where) for row, where in _rows(Path(path))]
    known = {question.id for question in questions}
    for key, _, where in rows:
        if key not in known:
            raise EvcapError(f"{where}: there is no question '{key}'; are these predictions for another file?")
    _refuse_twice([key for key, _, _ in rows], path)
    return {key: prediction for key, prediction, _ in rows}


def _rows(path: Path) -> list[tuple[dict, str]]:
    """The objects of a JSON list or of JSON lines, each with its place in words."""
    text = read_text(path, LARGEST_JSON)
    try:
        if text.lstrip().startswith("["):
            rows = [(row, f"{path}, item {number}") for number, row in enumerate(json.loads(text), 1)]
        else:
            lines = [(line, f"{path}, line {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            rows = [(json.loads(line), where) for line, where in lines]
    except (ValueError, RecursionError) as error:
        raise EvcapError(f"{path} is neither JSON nor JSON lines: {one_line(error)}") from None
    for row, where in rows:
        if not isinstance(row, dict):
            raise EvcapError(f"{where}: expected an object with fields, found {type(row).__name__}")
    if not rows:
        raise EvcapError(f"{path} is empty")
    return rows


def _question(row: dict, where: str) -> Question:
    choices = _choices(row, where)
    truth = row.get("Ground truth")
    truths = truth if isinstance(truth, list) else [truth]
    if not truths or not all(isinstance(letter, str) and letter in choices for letter in truths):
        raise EvcapError(f"{where}: 'Ground truth' is {truth!r}, expected a letter of its choices or a list of them")
    names = ("Question_id", "Image", "Text", "Category", "Subtask", "Task")
    key, image, text, category, subtask, task = (_text(row, name, where) for name in names)
    places = [(row.get(name), count, f"{where}: '{name}'") for name, count in (("gt_toi", 4), ("img_size", 2))]
    target, size = (None if values is None else _numbers(values, count, what) for values, count, what in places)
    return Question(key, image, text, choices, tuple(truths), category, subtask, task, target, size)


def _choices(row: dict, where: str) -> dict[str, str]:
    texts = row.get("Answer choices")
    found = [_CHOICE.fullmatch(text) for text in texts if isinstance(text, str)] if isinstance(texts, list) else []
    choices = {match[1]: match[2] for match in found if match}
    if len(choices) < 2 or len(choices) < len(texts):
        raise EvcapError(f"{where}: 'Answer choices' is {texts!r}, expected a list of texts '(A) ...' to '(E) ...'")
    return choices


def _prediction(row: dict, where: str) -> Prediction:
    boxes = row.get("boxes") or []
    if not isinstance(boxes, list):
        raise EvcapError(f"{where}: 'boxes' is {boxes!r}, expected a list of boxes")
    return Prediction(_text(row, "output", where), tuple(_numbers(box, 4, f"{where}: a box") for box in boxes))


def _text(row: dict, name: str, where: str) -> str:
    if not isinstance(row.get(name), str):
        raise EvcapError(f"{where}: '{name}' is {row.get(name)!r}, expected a text")
    return row[name]


def _numbers(values, count: int, what: str) -> tuple[float, ...]:
    if isinstance(values, list) and len(values) == count and all(type(v) in (int, float) and math.isfinite(v) for v in values):
        return tuple(map(float, values))
    raise EvcapError(f"{what} is {values!r}, expected {count} numbers")


def _refuse_twice(keys: list[str], path: str | Path) -> None:
    for key, count in Counter(keys).items():
        if count > 1:
            raise EvcapError(f"{path}: question '{key}' stands {count} times")
