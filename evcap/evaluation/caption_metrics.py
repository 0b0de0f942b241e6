"""Caption scores by pycocoevalcap: BLEU-1..4, METEOR, ROUGE-L, CIDEr, and SPICE where its models are given. In percent.

The PTB tokenizer, METEOR and SPICE run in Java.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evcap.errors import EvcapError

Tokenized = dict[int, list[str]]

# The same scores wherever they are computed: Meteor prints 0,5 in German and cannot read it again, Turkish has no i in "I".
# The last three name what JAVA_TOOL_OPTIONS may have set beside the language.
LOCALE = [
    *("-Duser.language=en", "-Duser.country=US", "-Duser.script=", "-Duser.variant="),
    *("-Duser.language.format=en", "-Duser.country.format=US", "-Duser.script.format=", "-Duser.variant.format="),
    *("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8"),
]


def score(
    predictions: Mapping[int, str], references: Mapping[int, Sequence[str]], spice_models: Path | None = None
) -> dict[str, float]:
    """Scores in percent over all predictions {image id: caption}, references {image id: captions}.

    References of other images are ignored. "SPICE" is there if its models are in `spice_models` (`missing_spice` says what
    is not); it is left out with a warning where its Java program fails. Raises EvcapError without Java, predictions or
    references.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth, said = tokenize(predictions, references)
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print their progress
        bleu = Bleu(4).compute_score(truth, said, verbose=0)[0]
        scores = {f"BLEU-{n}": value for n, value in enumerate(bleu, 1)}
        scores["METEOR"] = _meteor(truth, said)
        scores["ROUGE-L"] = Rouge().compute_score(truth, said)[0]
        scores["CIDEr"] = Cider().compute_score(truth, said)[0]
    if spice_models is not None and not missing_spice(spice_models):
        scores["SPICE"] = _spice(truth, said, spice_models)
    return {name: 100 * float(value) for name, value in scores.items() if value is not None}


def score_domains(
    predictions: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    domains: Mapping[int, str],
    spice_models: Path | None = None,
) -> dict[str, dict[str, float]]:
    """{domain: scores} for `domains` {image id: domain}, each by `score` as if it were a set of its own.

    So CIDEr takes the document frequencies of a domain from the references of that domain alone.
    """
    scores = {}
    for domain in sorted(set(domains[key] for key in predictions)):
        own = {key: caption for key, caption in predictions.items() if domains[key] == domain}
        scores[domain] = score(own, references, spice_models)
    return scores


def per_image_cider(predictions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> dict[int, float]:
    """CIDEr of each image, in percent (0 to 1000); document frequencies from the references of these images."""
    from pycocoevalcap.cider.cider import Cider

    truth, said = tokenize(predictions, references)
    values = Cider().compute_score(truth, said)[1]
    return {key: 100 * float(value) for key, value in zip(truth, values, strict=True)}


def cider(predictions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> float:
    """CIDEr alone, in percent: the quick score of validation during training."""
    values = per_image_cider(predictions, references)
    return sum(values.values()) / len(values)


def meteor_each(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """METEOR of each caption against its own references: 0 to 1, not in percent. Raises EvcapError as `score` does."""
    truth, said = tokenize(dict(enumerate(predictions)), dict(enumerate(references)))
    return [float(value) for value in _meteor_scores(truth, said)[1]]


def spice_models() -> Path:
    """The folder where pycocoevalcap keeps SPICE's models; it would download them there, this project never does."""
    from pycocoevalcap.spice.get_stanford_models import SPICEDIR, SPICELIB

    return Path(SPICEDIR) / SPICELIB


def missing_spice(folder: Path) -> str | None:
    """Why SPICE cannot be computed with the models in `folder`, in one line, or None."""
    absent = [jar.name for jar in _corenlp(folder) if not jar.is_file()]
    return f"SPICE is left out: {' and '.join(absent)} (Stanford CoreNLP) not in {folder}" if absent else None


def _corenlp(folder: Path) -> list[Path]:
    from pycocoevalcap.spice.get_stanford_models import JAR

    return [folder / f"{JAR}.jar", folder / f"{JAR}-models.jar"]


def tokenize(predictions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> tuple[Tokenized, Tokenized]:
    """Lower-case PTB words, without punctuation, of (references, predictions), both with the keys of `predictions`."""
    if not predictions:
        raise EvcapError("there is nothing to score: no predictions")
    missing = [key for key in predictions if not references.get(key)]
    if missing:
        raise EvcapError(f"{len(missing)} predictions have no reference caption, the first is for image {missing[0]}")
    rows = [[caption, *references[key]] for key, caption in predictions.items()]
    lines = _tokenize_lines([_whole(caption) for row in rows for caption in row])
    tokenized = {key: [next(lines) for _ in row] for key, row in zip(predictions, rows, strict=True)}
    return {key: row[1:] for key, row in tokenized.items()}, {key: row[:1] for key, row in tokenized.items()}


def _whole(caption: str) -> str:
    """Without halves of characters, which other tools leave where they cut: a question mark, which counts as punctuation."""
    return caption.encode(errors="replace").decode()


def _java(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """A command that starts Java, and its environment; neither the locale nor other settings there reach the scores."""
    environment = dict(os.environ)
    if "_JAVA_OPTIONS" in environment:  # counts more than what the command says
        environment["_JAVA_OPTIONS"] += " " + " ".join(LOCALE)
    return ["java", *LOCALE, *arguments], environment


def _tokenize_lines(captions: Sequence[str]) -> Iterator[str]:
    """What pycocoevalcap's PTBTokenizer gives. Called without it: it writes its input among the installed packages, which
    may be read-only, and lets the Java program talk on standard error."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    if shutil.which("java") is None:
        raise EvcapError("scoring needs Java (the PTB tokenizer and METEOR run in it): install a Java runtime")
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    tokenizer = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    command, environment = _java(*tokenizer)
    # an empty line would shift the output by one: a caption without a word becomes a full stop, which is dropped below
    text = "\n".join(" ".join(caption.split()) or "." for caption in captions)
    run = subprocess.run(command, input=text.encode(), capture_output=True, env=environment)
    lines = run.stdout.decode().removesuffix("\n").split("\n")
    if run.returncode or len(lines) != len(captions):
        raise EvcapError(f"the PTB tokenizer failed in Java: {_last_line(run.stderr)}")
    for line in lines:
        yield " ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS)


def _meteor(truth: Tokenized, said: Tokenized) -> float:
    return _meteor_scores(truth, said)[0]


def _meteor_scores(truth: Tokenized, said: Tokenized) -> tuple[float, Sequence[float]]:
    """The score of all captions together, which is not the mean, and of each."""
    from pycocoevalcap.meteor import meteor as package

    class Meteor(package.Meteor):
        """Its own start takes what the system says for the language."""

        def __init__(self):
            command, environment = _java("-Xmx2G", "-jar", package.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm")
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            self.meteor_p = subprocess.Popen(command, cwd=Path(package.__file__).parent, env=environment, **pipes)
            self.lock = threading.Lock()

    meteor = Meteor()
    java = meteor.meteor_p
    try:
        return meteor.compute_score(truth, said)
    except (ValueError, OSError):  # the Java program ended early, for want of memory as a rule
        java.kill()
        raise EvcapError(f"METEOR failed in Java: {_last_line(java.stderr.read())}") from None
    finally:
        java.kill()
        if meteor.lock.locked():  # a failure leaves it locked, and Meteor.__del__ would wait for it for ever
            meteor.lock.release()
        for pipe in (java.stdin, java.stdout, java.stderr):
            with contextlib.suppress(BrokenPipeError):  # what could not be written any more
                pipe.close()
        java.wait()


def _spice(truth: Tokenized, said: Tokenized, models: Path) -> float | None:
    """What pycocoevalcap's Spice gives. Called without it: it works among the installed packages, which may be read-only,
    and with a cache of parses that stops Java 16 and newer."""
    from pycocoevalcap.spice import spice

    rows = [{"image_id": key, "test": said[key][0], "refs": truth[key]} for key in sorted(said)]
    jars = [Path(spice.__file__).with_name(spice.SPICE_JAR), *_corenlp(models)]
    with tempfile.TemporaryDirectory(prefix="evcap-spice-") as folder:
        asked, answer = Path(folder, "in.json"), Path(folder, "out.json")
        asked.write_text(json.dumps(rows))
        scorer = [
            "-Xmx8G",
            "-cp",
            os.pathsep.join(map(str, jars)),
            "edu.anu.spice.SpiceScorer",
            str(asked),
            "-out",
            str(answer),
        ]
        command, environment = _java(*scorer)
        run = subprocess.run(command, capture_output=True, env=environment)
        written = answer.read_text(encoding="utf-8") if answer.exists() else ""
    if written:
        scores = [row["scores"]["All"]["f"] for row in json.loads(written)]
        return sum(float("nan") if f is None else f for f in scores) / len(scores)
    # Java 15 and newer have no JavaScript, with which the file is laid out: the mean was printed before, with three digits
    printed = re.search(r"f-score:\s+([\d.]+) \(SPICE metric\)", run.stdout.decode(errors="replace"))
    if printed:
        return float(printed[1])
    warnings.warn(f"SPICE is left out, it failed in Java: {_last_line(run.stderr)}", stacklevel=3)
    return None


def _last_line(output: bytes) -> str:
    """What Java says went wrong, without the places in its code, which are indented."""
    lines = output.decode(errors="replace").strip().splitlines()
    return ([line for line in lines if not line.startswith(("\t", "Picked up "))] or ["it said nothing"])[-1]
