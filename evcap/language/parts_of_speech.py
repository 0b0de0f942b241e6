"""Parts of speech of English words, as in the Penn Treebank, without a model or a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from evcap.errors import EvcapError


@cache
def pattern_tagger():
    """TextBlob's PatternTagger. Raises EvcapError where TextBlob is not installed."""
    try:
        from textblob.taggers import PatternTagger  # its lexicon and rules lie inside the wheel: nothing is downloaded
    except ImportError as error:
        raise EvcapError(f"parts of speech need TextBlob (pip install 'evcap[uhr]', or textblob alone): {error}") from None
    return PatternTagger()


@cache
def lexicon():
    """What the tagger knows: {word: tag}."""
    pattern_tagger()
    from textblob.en import parser  # that of the tagger

    return parser.lexicon


def tag_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """(word, tag) of each word of a sentence; words must hold no white space. Raises EvcapError without TextBlob."""
    tags = pattern_tagger().tag(" ".join(words), tokenize=False) if words else []
    return [(word, tag) for word, (_, tag) in zip(words, tags, strict=True)]
