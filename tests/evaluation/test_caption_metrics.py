"""Scores against pycocoevalcap called directly and against values worked out by hand; Java that is absent or dies."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import cider, missing_spice, per_image_cider, score, score_domains, tokenize

REFERENCES = {
    12: ["A man's dog runs, fast (very fast), on grass.", "The dog is running on a lawn"],
    5: ["Two children play football.", "Kids in red T-shirts kick a ball!", "Some boys playing"],
    9: ["an aeroplane over mountains"],
    1: ["Une fille à la plage", "naïve “girl” – beach"],
}
PREDICTIONS = {5: "two boys play football", 12: "A brown dog running on the grass.", 9: "a boat on a lake", 1: "a girl 😀"}


def directly(predictions: dict[int, str], with_meteor: bool = True) -> tuple[dict[str, float], dict[int, float]]:
    """All scores, and CIDEr of each image, as pycocoevalcap's own classes give them; METEOR may be 0, it starts slowly."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({k: [{"caption": c} for c in REFERENCES[k]] for k in predictions})
    said = tokenizer.tokenize({k: [{"caption": c}] for k, c in predictions.items()})
    scores = {f"BLEU-{n}": value for n, value in enumerate(Bleu(4).compute_score(truth, said, verbose=0)[0], 1)}
    scores["METEOR"] = Meteor().compute_score(truth, said)[0] if with_meteor else 0.0
    scores["ROUGE-L"] = Rouge().compute_score(truth, said)[0]
    scores["CIDEr"], each = Cider().compute_score(truth, said)
    return {k: 100 * v for k, v in scores.items()}, dict(zip(predictions, 100 * each, strict=True))


def test_scores_are_those_of_pycocoevalcap(capfd, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            started.extend([self] if "-stdio" in arguments[0] else [])

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", Popen)
        scores = score(PREDICTIONS, REFERENCES)
    assert len(started) == 1
    assert started[0].returncode is not None and started[0].stdin.closed and started[0].stdout.closed
    assert capfd.readouterr() == ("", "")  # neither the scorers nor Java say anything

    expected, each = directly(PREDICTIONS)
    assert scores == pytest.approx(expected, abs=1e-9)
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
    assert per_image_cider(PREDICTIONS, REFERENCES) == pytest.approx(each, abs=1e-9)
    assert cider(PREDICTIONS, REFERENCES) == pytest.approx(expected["CIDEr"], abs=1e-9)


ABROAD = {1: "SKIING IN A CITY", 2: "na\u00efve \u00c9l\u00e9phants sit"}
AT_HOME = {1: ["Skiing in a big city"], 2: ["naive \u00e9l\u00e9phants SIT"]}


@pytest.fixture(scope="module")
def plain() -> tuple[dict, tuple]:
    """Scores and words of ABROAD in the locale that the tests run in."""
    return score(ABROAD, AT_HOME), tokenize(ABROAD, AT_HOME)


@pytest.mark.parametrize("variable", ["JAVA_TOOL_OPTIONS", pytest.param("_JAVA_OPTIONS", marks=pytest.mark.slow), "LC_ALL"])
def test_scores_do_not_depend_on_the_locale(monkeypatch, variable, plain):
    """German writes 0,5; in Turkish "I" becomes a dotless i in small letters; in the C locale there are no accents."""
    scores, words = plain
    assert words[1] == {1: ["skiing in a city"], 2: ["na\u00efve \u00e9l\u00e9phants sit"]}
    if variable == "LC_ALL":
        monkeypatch.setenv("LC_ALL", "C")
    else:
        german = "-Duser.language.format=de -Duser.country.format=DE -Dfile.encoding=ISO-8859-9"
        monkeypatch.setenv(variable, f"-Duser.language=tr -Duser.country=TR {german}")
    assert tokenize(ABROAD, AT_HOME) == words
    assert score(ABROAD, AT_HOME) == scores


def test_halves_of_characters_are_scored_as_punctuation(without_meteor):
    """As are bytes of file names (PEP 383); whole ones stay. METEOR reads the same words."""
    cut = {1: "a dog \ud83d runs\ude00", 2: "two \udcff cats", 3: "a \U0001f600 cat"}
    references = {1: ["a dog\udc00 runs fast", "\ud83d"], 2: ["two cats"], 3: ["a cat"]}
    clean = {1: "a dog ? runs ?", 2: "two ? cats", 3: "a \U0001f600 cat"}
    truth = {1: ["a dog runs fast", "?"], 2: ["two cats"], 3: ["a cat"]}
    assert tokenize(cut, references) == tokenize(clean, truth) and score(cut, references) == score(clean, truth)
    assert per_image_cider(cut, references)[2] > 0


def test_equal_and_disjoint_captions(without_meteor):
    truth = {1: ["a brown dog runs on grass"], 2: ["two boats lie in the harbor"]}
    same = score({1: "A brown dog runs on grass.", 2: "Two boats lie in the harbor!"}, truth)
    assert [same[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx([100] * 4, abs=1e-5)
    assert same["ROUGE-L"] == pytest.approx(100)
    assert same["CIDEr"] == pytest.approx(1000)  # ten times a cosine of 1
    swapped = score({1: truth[2][0], 2: truth[1][0]}, truth)
    assert [swapped[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx([0] * 4, abs=1e-5)
    assert swapped["ROUGE-L"] == swapped["CIDEr"] == 0


def test_bleu_by_hand(without_meteor):
    """3 of 4 words and 1 of 3 pairs are right; two words of a reference of four pay exp(1 - 4/2)."""
    scores = score({1: "red dogs run home"}, {1: ["red dogs walk home", "a cat"]})
    assert scores["BLEU-1"] == pytest.approx(75, abs=1e-5)
    assert scores["BLEU-2"] == pytest.approx(100 * math.sqrt(3 / 4 * 1 / 3), abs=1e-5)
    assert score({1: "red dogs"}, {1: ["red dogs run home"]})["BLEU-1"] == pytest.approx(100 * math.exp(-1), abs=1e-5)


def test_cider_by_hand():
    """One of two words agrees, all equally rare: cosine 1/2 for words, 0 for pairs, triples and quadruples."""
    each = per_image_cider({8: "red dog", 4: "blue boat"}, {4: ["blue boat"], 8: ["red cat"], 99: ["not scored"]})
    assert each == pytest.approx({8: 10 * 100 * (1 / 2) / 4, 4: 10 * 100 * (1 + 1) / 4})


def test_captions_that_shift_lines_or_vanish():
    predictions = {1: "", 2: "a\ndog\u2028runs\r\n", 3: "...", 4: "😀", 5: "a cat"}
    references = {key: ["one", "\n", "two three"] for key in predictions}
    truth, said = tokenize(predictions, references)
    assert said == {1: [""], 2: ["a dog runs"], 3: [""], 4: [""], 5: ["a cat"]}
    assert truth == {key: ["one", "", "two three"] for key in predictions}


def test_what_cannot_be_scored(monkeypatch):
    with pytest.raises(EvcapError, match="no predictions"):
        score({}, {1: ["a dog"]})
    with pytest.raises(EvcapError, match="2 predictions have no reference caption, the first is for image 2"):
        cider({1: "a", 2: "b", 3: "c"}, {1: ["a"], 2: []})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EvcapError, match="scoring needs Java"):
        cider({1: "a"}, {1: ["a"]})


@pytest.fixture
def broken_java(tmp_path, monkeypatch):
    """Put a `java` first on the PATH that fails when one of its arguments contains the given word."""

    def install(word: str) -> None:
        program = tmp_path / "java"
        program.write_text(
            f'#!/bin/sh\ncase "$*" in *{word}*) echo starting >&2; echo "no room for the heap" >&2; exit 1;; esac\n'
            f'exec "{shutil.which("java")}" "$@"\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_tokenizer_that_dies(broken_java):
    broken_java("PTBTokenizer")
    with pytest.raises(EvcapError, match="^the PTB tokenizer failed in Java: no room for the heap$"):
        cider({1: "a"}, {1: ["a"]})


def test_meteor_that_dies(broken_java):
    """Its class would wait for ever when it is deleted."""
    broken_java("meteor")
    with pytest.raises(EvcapError, match="^METEOR failed in Java: no room for the heap$"):
        score({1: "a"}, {1: ["a"]})


@pytest.fixture
def corenlp(tmp_path) -> Path:
    """A folder with files of the names that SPICE's models have."""
    for end in (".jar", "-models.jar"):
        (tmp_path / f"stanford-corenlp-3.6.0{end}").touch()
    return tmp_path


@pytest.mark.parametrize("absent", ["stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"])
def test_spice_is_left_out_without_its_models(corenlp, without_meteor, absent):
    assert missing_spice(corenlp) is None
    (corenlp / absent).unlink()
    assert missing_spice(corenlp) == f"SPICE is left out: {absent} (Stanford CoreNLP) not in {corenlp}"
    assert "SPICE" not in score({1: "a dog"}, {1: ["a dog"]}, corenlp)
    assert "SPICE" not in score({1: "a dog"}, {1: ["a dog"]})


# In place of SpiceScorer, with its arguments and files: F1 is half the share of a caption's words that its references say.
SPICE_IN_JAVA = """#!{python}
import json, os, sys
if "edu.anu.spice.SpiceScorer" not in sys.argv:
    os.execv("{java}", ["java", *sys.argv[1:]])
jars = sys.argv[sys.argv.index("-cp") + 1].split(os.pathsep)
assert all(map(os.path.isfile, jars)) and jars[0].endswith("spice-1.0.jar") and "-cache" not in sys.argv
asked, _, answer = sys.argv[-3:]
rows = []
for row in json.load(open(asked)):
    words = row["test"].split()
    f = sum(word in " ".join(row["refs"]).split() for word in words) / len(words) / 2
    rows.append(dict(image_id=row["image_id"], scores=dict(All=dict(f=f, pr=f, re=f))))
print("\\nAll tuples\\n  f-score:\\t%.3f (SPICE metric)" % (sum(r["scores"]["All"]["f"] for r in rows) / len(rows)))
print("\\nColor tuples\\n  f-score:\\t0.999 (SPICE metric)")
open(answer, "w").write("" if {modern} else json.dumps(rows))
sys.exit({modern})
"""


@pytest.mark.parametrize("modern", [0, 1])  # 1: Java 15 and newer, which fails after it has printed the mean
def test_spice_with_its_models(corenlp, without_meteor, monkeypatch, modern):
    program = corenlp / "java"
    program.write_text(SPICE_IN_JAVA.format(python=sys.executable, java=shutil.which("java"), modern=modern))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{corenlp}{os.pathsep}{os.environ['PATH']}")
    predictions, references = {7: "a dog", 3: "A red cat."}, {3: ["a cat", "one animal"], 7: ["a dog"]}
    scores = score(predictions, references, corenlp)
    assert scores["SPICE"] == pytest.approx(100 * (1 / 2 + 2 / 3 / 2) / 2, abs=0.05 if modern else 1e-9)
    assert list(scores)[-2:] == ["CIDEr", "SPICE"]
    by_domain = score_domains(predictions, references, {7: "in-domain", 3: "near-domain"}, corenlp)
    assert by_domain["in-domain"]["SPICE"] == pytest.approx(50)
    assert by_domain["near-domain"]["SPICE"] == pytest.approx(100 / 3, abs=0.05)


def test_spice_that_fails_in_java(corenlp, without_meteor):
    """The real program, whose models are empty files: it starts, and misses CoreNLP."""
    with pytest.warns(UserWarning, match="SPICE is left out, it failed in Java: .*edu.stanford.nlp"):
        scores = score({1: "a dog"}, {1: ["a dog"]}, corenlp)
    assert "SPICE" not in scores and scores["ROUGE-L"] == 100


def test_domains_are_sets_of_their_own(without_meteor):
    """As pycocoevalcap scores the images of each domain alone, with document frequencies of those."""
    domains = {5: "in-domain", 12: "in-domain", 9: "out-domain", 1: "out-domain"}
    by_domain = score_domains(PREDICTIONS, REFERENCES, domains)
    assert list(by_domain) == ["in-domain", "out-domain"]
    for domain, scores in by_domain.items():
        expected, _ = directly({key: text for key, text in PREDICTIONS.items() if domains[key] == domain}, False)
        assert scores == pytest.approx(expected, abs=1e-9)
    each = per_image_cider(PREDICTIONS, REFERENCES)
    assert by_domain["in-domain"]["CIDEr"] != pytest.approx((each[5] + each[12]) / 2)
    one = score_domains(PREDICTIONS, REFERENCES, dict.fromkeys(PREDICTIONS, "near-domain"))
    assert one == {"near-domain": pytest.approx(score(PREDICTIONS, REFERENCES), abs=1e-9)}


def test_domains_by_hand(without_meteor):
    """As in test_cider_by_hand, but an image alone in its domain scores 0: every document of it has the image's words."""
    predictions = {8: "red dog", 4: "blue boat", 2: "red dog"}
    references = {8: ["red cat"], 4: ["blue boat"], 2: ["red cat"]}
    by_domain = score_domains(predictions, references, {8: "near-domain", 4: "near-domain", 2: "in-domain"})
    assert by_domain["near-domain"]["CIDEr"] == pytest.approx((125 + 500) / 2)
    assert by_domain["in-domain"]["CIDEr"] == 0
