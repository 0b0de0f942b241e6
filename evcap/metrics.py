"""Caption scores by pycocoevalcap: BLEU-1..4, METEOR, ROUGE-L, CIDEr, and SPICE where its models are present. In percent.

The PTB tokenizer, METEOR and SPICE run in Java.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from evcap.errors import EvcapError


def _tokenize(texts: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    if shutil.which("java") is None:
        raise EvcapError("scoring needs Java (the PTB tokenizer and METEOR run in it): install a Java runtime")
    # an empty line would shift the tokenizer's output by one
    rows = {key: [{"caption": " ".join(t.split()) or "."} for t in row] for key, row in texts.items()}
    return PTBTokenizer(verbose=False).tokenize(rows)


def _prepare(predictions: Mapping[int, str], references: Mapping[int, Sequence[str]]):
    if not predictions:
        raise EvcapError("there is nothing to score: no predictions")
    missing = [key for key in predictions if not references.get(key)]
    if missing:
        raise EvcapError(f"{len(missing)} predictions have no reference caption, the first is for picture {missing[0]}")
    truth = _tokenize({key: references[key] for key in predictions})
    return truth, _tokenize({key: [caption] for key, caption in predictions.items()})


def spice_is_available() -> bool:
    """True when SPICE's Stanford CoreNLP models lie where pycocoevalcap looks; they are not part of its wheel."""
    import pycocoevalcap

    library = Path(pycocoevalcap.__file__).parent / "spice" / "lib"
    return any(library.glob("stanford-corenlp-*-models.jar"))


def score(
    predictions: Mapping[int, str], references: Mapping[int, Sequence[str]], spice: bool = True
) -> dict[str, float]:
    """Scores in percent over all predictions {picture id: caption}, references {picture id: captions}.

    "SPICE" is absent from the result when its models are. Raises EvcapError without Java, predictions or references.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    truth, said = _prepare(predictions, references)
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print their progress
        bleu = Bleu(4).compute_score(truth, said, verbose=0)[0]
        scores = {f"BLEU-{n}": value for n, value in enumerate(bleu, 1)}
        meteor = Meteor()
        try:
            scores["METEOR"] = meteor.compute_score(truth, said)[0]
        finally:
            meteor.meteor_p.kill()
        scores["ROUGE-L"] = float(Rouge().compute_score(truth, said)[0])
        scores["CIDEr"] = float(Cider().compute_score(truth, said)[0])
        if spice and spice_is_available():
            from pycocoevalcap.spice.spice import Spice

            scores["SPICE"] = float(Spice().compute_score(truth, said)[0])
    return {name: 100 * value for name, value in scores.items()}


def per_image_cider(predictions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> dict[int, float]:
    """CIDEr of each picture, in percent; document frequencies from these references."""
    from pycocoevalcap.cider.cider import Cider

    truth, said = _prepare(predictions, references)
    values = Cider().compute_score(truth, said)[1]
    return {key: 100 * float(value) for key, value in zip(truth, values, strict=True)}


def cider(predictions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> float:
    """CIDEr alone, in percent: the quick score of validation during training."""
    values = per_image_cider(predictions, references)
    return sum(values.values()) / len(values)
