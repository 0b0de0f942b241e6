"""Control words: the tags and words that stand before a region's caption and say what it should speak of.

In training they come from the caption itself and from the tags of its region, with many dropped; afterwards from the tags
that were predicted and from the user.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence

from evcap.language.parts_of_speech import tag_words

Tagged = Sequence[tuple[str, str]]  # a word and its part of speech as in the Penn Treebank
Tagger = Callable[[Sequence[str]], Tagged]

END = "|"  # of the control words, there even where no word is
MOST_WORDS = 50
KEPT = 0.5
_MARKS = re.compile(r"""[.!"()*#:;~]""")


def clean_caption(caption: str) -> str:
    """A caption as training reads it: lower-case, without most marks, at most MOST_WORDS words with one blank between."""
    return " ".join(_MARKS.sub(" ", caption.lower()).split()[:MOST_WORDS])


def caption_phrases(tagged: Tagged) -> list[str]:
    """What a caption names: its nouns and adjectives, each with the nouns that follow it, in the caption's order, each once.

    A word that stands several times counts where it stands first. "red fire truck" gives itself, "fire truck" and "truck".
    """
    words = [word for word, _ in tagged]
    nouns = {word for word, tag in tagged if tag.startswith("NN")}
    phrases = []
    for word, tag in tagged:
        if tag.startswith(("NN", "JJ")):
            start = end = words.index(word)
            while end + 1 < len(words) and words[end + 1] in nouns:
                end += 1
            phrases.append(" ".join(words[start : end + 1]))
    return list(dict.fromkeys(phrases))


def training_words(caption: str, tags: Iterable[str], tagger: Tagger = tag_words) -> list[str]:
    """All control words of a caption and of the tags of its region, each once, before any are dropped.

    tagger: the words of a cleaned caption -> each with its part of speech; TextBlob's unless told.
    """
    return _distinct([*caption_phrases(tagger(caption.split())), *tags])


def dropped(words: Sequence[str], draw: random.Random) -> str:
    """Control words for one step of training: none in half of all cases, else each with probability KEPT, shuffled."""
    if draw.random() < 0.5:
        return control_words([])
    kept = [word for word in words if draw.random() < KEPT]
    draw.shuffle(kept)
    return control_words(kept)


def control_words(tags: Iterable[str], own: Iterable[str] = (), phrase: str | None = None) -> str:
    """The text that a region's caption is asked with: the user's `own` words, a `phrase`, then tags, each once, and END.

    phrase: for experiments, what the caption should name, as the first of `caption_phrases` of a reference.
    """
    return ",".join(_distinct([*own, phrase or "", *tags])) + END


def _distinct(words: Iterable[str]) -> list[str]:
    return [word for word in dict.fromkeys(words) if word]
