"""evcap/evaluation/mme_realworld.py: letters read from replies, and files that are read or refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evcap.errors import EvcapError
from evcap.evaluation.mme_realworld import INTRODUCTIONS, LOST, Prediction, read_predictions, read_questions, read_reply

CHOICES = {"A": "Blue", "B": "Dark red", "C": "White", "D": "Red", "E": "The image doesn't feature the color"}
ROW = {
    "Question_id": "q1",
    "Image": "one.png",
    "Text": "What color is the roof?",
    "Question Type": "Multiple Choice",
    "Answer choices": [f"({letter}) {text}" for letter, text in CHOICES.items()],
    "Ground truth": "C",
    "Category": "color",
    "Subtask": "Remote Sensing",
    "Task": "Perception",
    "gt_toi": [100, 200, 300.5, 400],
    "img_size": [4000, 3000],
}

# reply, our reading, the reference's
REPLIES = [
    ("C", "C", "C"),
    ("(C)", "C", "C"),
    ("C.", "C", "C"),
    ("The answer is C", "C", "C"),
    ("The best answer is: (D) Red", "D", "D"),
    ("Answer: E", "E", "E"),
    ("I think (B) or (D)", "B", "B"),
    # the faults of the reference
    ("Based on the image, it is C", "C", "B"),
    ("A roof is in the corner: (D)", "D", "A"),
    ("Best answer: C", "C", "B"),
    ("Best option: C", "C", "B"),
    ("DRONE VIEW: C", "C", "D"),
    ("answer: (C). Anyway", "C", "C"),
    # no letter: the choice
    ("white", "C", "C"),
    ("Dark red", "B", "D"),  # its capital
    ("dark red", "B", "B"),
    ("red", "D", "B"),  # stands in (B) too, and that comes first; to us one choice is it
    ("the roof is white", "C", ""),
    ("the roof is white, as far as can be seen from so high above", "C", ""),  # more than ten words
    ("blue or white", "", ""),  # no single one
    ("c", "C", "C"),
    ("b", "B", "A"),  # in "(a) blue"
    ("", "", "A"),  # in every choice
    ("it cannot be told", "", ""),
]


@pytest.mark.parametrize("reply, ours, reference", REPLIES)
def test_replies(reply, ours, reference):
    assert read_reply(reply, CHOICES) == ours
    assert read_reply(reply, CHOICES, parity=True) == reference


def test_article_is_no_letter():
    assert read_reply("A plane and a car are there, so C", CHOICES) == "C"
    assert read_reply("A is right", CHOICES) == read_reply("A", CHOICES) == read_reply("It is A.", CHOICES) == "A"


def test_letter_that_is_no_choice_is_not_ours():
    four = {letter: text for letter, text in CHOICES.items() if letter != "E"}
    assert read_reply("E, or else (B)", four) == "B"
    assert read_reply("E", four) == ""


@given(st.sampled_from(INTRODUCTIONS + LOST), st.sampled_from("ABCDE"), st.sampled_from(["{}", "({})", " {}.", ": {}", "\n{}"]))
def test_letter_after_any_introduction(introduction, letter, form):
    for said in (introduction, introduction.lower(), f"Let us see: a car. {introduction}"):
        assert read_reply(said + form.format(letter), CHOICES) == letter


def naive_reference(reply: str) -> str:
    """The reference's rule, letter by letter, without regular expressions."""
    ends = [start + len(i) for i in INTRODUCTIONS for start in range(len(reply)) if reply.startswith(i, start)]
    text = reply[max(ends, default=0) :].strip()
    for character in text:
        if character in ("A", "B", "C", "D", "E"):
            return character
    if len(text.split()) > 10:
        return ""
    for letter, choice in CHOICES.items():
        if text.lower() in f"({letter}) {choice}".lower():
            return letter
    return ""


WORDS = st.sampled_from(
    [*INTRODUCTIONS, *LOST, *CHOICES.values(), "(C)", "D", "roof", "Based", "a", "A", "red", "\n", ",", "no"]
)


@given(st.one_of(st.text(), st.lists(WORDS, max_size=14).map(" ".join)))
def test_any_reply_is_read(reply):
    assert read_reply(reply, CHOICES) in {*CHOICES, ""}
    assert read_reply(reply, CHOICES, parity=True) == naive_reference(reply)


def written(path, rows, lines=False):
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


@pytest.mark.parametrize("lines", [False, True])
def test_questions_are_read(tmp_path, lines):
    both = {**ROW, "Question_id": "q2", "Ground truth": ["A", "C"], "gt_toi": None}
    first, second = read_questions(written(tmp_path / "q.json", [ROW, both], lines))
    assert (first.id, first.image, first.text) == ("q1", "one.png", "What color is the roof?")
    assert first.choices == CHOICES and first.truths == ("C",) and second.truths == ("A", "C")
    assert (first.task, first.subtask, first.category) == ("Perception", "Remote Sensing", "color")
    assert first.target == (100, 200, 300.5, 400) and first.size == (4000, 3000) and second.target is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"Ground truth": "F"}, r"item 2: 'Ground truth' is 'F', expected a letter"),
        ({"Ground truth": "AC"}, "'Ground truth'"),
        ({"Ground truth": []}, "'Ground truth'"),
        ({"Ground truth": 3}, "'Ground truth'"),
        ({"Ground truth": [["A"]]}, "'Ground truth'"),
        ({"Answer choices": "(A) x"}, "'Answer choices'"),
        ({"Answer choices": ["(A) x", "B) y"]}, "'Answer choices'"),
        ({"Answer choices": ["(A) x", "(A) y"]}, "'Answer choices'"),
        ({"Answer choices": ["(A) x", 7]}, "'Answer choices'"),
        ({"Text": None}, "'Text' is None, expected a text"),
        ({"Task": ["Perception"]}, "'Task'"),
        ({"gt_toi": [1, 2, 3]}, r"'gt_toi' is \[1, 2, 3\], expected 4 numbers"),
        ({"gt_toi": [1, 2, 3, float("nan")]}, "'gt_toi'"),
        ({"img_size": [1, True]}, "'img_size'"),
        ({"Question_id": "q1"}, "question 'q1' stands 2 times"),
    ],
)
def test_bad_questions_are_named(tmp_path, change, message):
    path = written(tmp_path / "q.json", [ROW, {**ROW, "Question_id": "q2", **change}])
    with pytest.raises(EvcapError, match=message):
        read_questions(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"[]", "is empty"),
        (b"[1]", "item 1: expected an object"),
        (b"{", "neither JSON"),
        (b"\xff", "UTF-8"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "q.json").write_bytes(content)
    with pytest.raises(EvcapError, match=message):
        read_questions(tmp_path / "q.json")
    with pytest.raises(EvcapError, match="cannot read"):
        read_questions(tmp_path / "none.json")


def test_predictions_are_read(tmp_path):
    questions = read_questions(written(tmp_path / "q.json", [ROW, {**ROW, "Question_id": "q2"}]))
    row = {"Question_id": "q2", "output": "C", "boxes": [[1, 2, 3, 4.5]], "Category": "color"}
    assert read_predictions(written(tmp_path / "p.jsonl", [row], True), questions) == {"q2": Prediction("C", ((1, 2, 3, 4.5),))}
    for change, message in [
        ({"Question_id": "q3"}, "line 2: there is no question 'q3'"),
        ({"Question_id": "q2"}, "stands 2 times"),
        ({"output": None}, "'output' is None"),
        ({"boxes": [[1, 2, 3]]}, "a box is"),
        ({"boxes": [None]}, "a box is None"),
        ({"boxes": 5}, "'boxes' is 5"),
    ]:
        bad = written(tmp_path / "p.jsonl", [row, {"Question_id": "q1", "output": "C", **change}], True)
        with pytest.raises(EvcapError, match=message):
            read_predictions(bad, questions)
