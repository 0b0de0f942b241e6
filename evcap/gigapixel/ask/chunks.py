"""Noun chunks of a question: the ground targets it names, without a model or a network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evcap.language.parts_of_speech import lexicon, tag_words

MOST_PHRASES = 5  # facts of ImageRAG's parser: never more are searched
LONGEST = 8  # words of a phrase, counted from its head; a text in an unknown language would be one chunk

_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*|['’]s\b|[^\s\w]")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# where something lies says nothing about what it looks like
POSITION = _set("""
    left right top bottom upper lower middle center centre central front back rear far near left-hand right-hand
    top-left top-right bottom-left bottom-right upper-left upper-right lower-left lower-right
    leftmost rightmost topmost uppermost lowest highest farthest furthest nearest closest upward downward
    north south east west northern southern eastern western northeast northwest southeast southwest north-east north-west
    south-east south-west northeastern northwestern southeastern southwestern
""")
# a chunk about the picture itself says nothing about a target, whatever stands before: "satellite image"
PICTURE = _set("picture pictures image images photo photos photograph photographs imagery scene view map frame raster tile")
# parts of it and attributes that are asked for name no target, but a word before may: "roof colour", "river side"
VAGUE = _set("""
    area areas region regions part parts portion section side sides corner corners edge edges end ends quarter half
    location locations place places position positions direction directions orientation distance background foreground
    number numbers amount count total quantity color colors colour colours hue shape shapes size sizes length width height
    type types kind kinds sort sorts category class name names condition status pattern patterns material
    thing things something anything nothing object objects item items one ones other others way time moment today
    question answer option options choice choices percentage proportion ratio difference relationship weather season
    row rows group groups column columns point points
""")
# kept when another noun or an adjective says which: "water area", "shopping center", "circular patterns"
VAGUE_ALONE = _set(
    "area areas region regions center centre pattern patterns row rows group groups column columns point points object objects"
)
# "a group of ships": the ships are meant
MEASURE = _set("""
    group groups cluster clusters row rows line lines column columns pair pairs lot lots bunch set series stack stacks pile
    piles herd herds flock piece pieces kind kinds type types sort number sign signs trace traces part parts
""")
QUANTITY = _set("""
    many much more most less least few fewer several any some all every each another other others such same different
    total whole only present visible various certain following
    next last first second third fourth fifth sixth seventh eighth ninth tenth
""")
# question verbs, which the tagger takes for nouns where they open a question or follow "image"
VERBS = _set("""
    show shows showing shown contain contains containing depict depicts see seen find locate located count identify
    describe tell give list look looks looking please help name says
""")
# words of maps that the tagger, trained on news, does not take for nouns, and adjectives that it does
NOUNS = _set("""
    complex complexes pivot pivots crossing crossings stop stops dump skate combine buoy shed pedestrian
    chaparral roundabout
""")
ADJECTIVES = _set("red orange yellow green blue purple pink brown black white gray grey silver beige cyan dense sparse")
AUXILIARIES = _set("be is are was were do does did has have had")
ENGLISH = _set("""
    the is are there what where which how who does and of with near at this any all count find show locate can you see many
    tell describe that these those was were between
""")
# the commonest of questions in other languages, without what English has too, names of places among them
FOREIGN = _set("""
    gibt es hier ein eine einen einem einer der das dem den ist sind wo wie wieviele viele welche welcher und mit auf kein keine
    il elle une est sont où combien dans avec quel quelle quels quelles aucun
    una unas está están dónde donde cuántos cuántas cuantos qué cuál algún alguna
    gli della dello dei delle sono quanti quante nella nel quale
    onde quantos quantas existem há não
    een het zijn waar hoeveel welke niet naar daar
    finns det ett är hur många någon några hvor mange noen
    czy jest są gdzie jsou kolik
""")


@dataclass(frozen=True)
class Word:
    """A word or mark of a question. text: lower-case; tag: its part of speech as in the Penn Treebank."""

    text: str
    tag: str

    @property
    def noun(self) -> bool:
        return self.tag.startswith("NN")

    @property
    def adjective(self) -> bool:
        return self.tag.startswith("JJ")

    @property
    def participle(self) -> bool:
        return self.tag in ("VBN", "VBD", "VBG")


NOTHING = Word("", "")


def _is_english(word: str) -> bool:
    return (lexicon().get(word) or lexicon().get(word.capitalize()) or "FW") != "FW"


def noun_chunks(question: str) -> list[str]:
    """At most MOST_PHRASES different phrases, lower-case, in the order said; each is words of the question, in its order.

    A phrase is a noun with the adjectives and nouns before it, without articles, numbers and words of position. Words for
    the picture itself ("image", "upper left corner") and for what is asked ("colour", "number") give none.
    """
    words = _mended(_tagged(question))
    phrases = [" ".join(chunk[-LONGEST:]) for chunk in _chunks(words)]
    return [phrase for phrase in dict.fromkeys(phrases) if len(phrase) > 1][:MOST_PHRASES]


def seems_english(question: str) -> bool:
    """False if a question holds words of other languages, and no more of the commonest of English ones. With none of either,
    if letters are not English, or if half of three words or more are not in the tagger's lexicon, which lacks some names."""
    words = [word for word in _WORD.findall(question.lower()) if word[0].isalnum()]
    english, foreign = (sum(word in known for word in words) for known in (ENGLISH, FOREIGN))
    if english or foreign:
        return english > foreign
    known = sum(word.isdigit() or word in NOUNS | ADJECTIVES or _is_english(word) for word in words)
    return all(word.isascii() for word in words) and (len(words) < 3 or 2 * known > len(words))


def _tagged(question: str) -> list[Word]:
    texts = _WORD.findall(question.lower())
    return [Word(text, tag) for text, tag in tag_words(texts)]


def _mended(words: Sequence[Word]) -> list[Word]:
    """The tags, with what a tagger of news gets wrong in questions about maps put right."""
    mended: list[Word] = []
    for word, after in zip(words, [*words[1:], NOTHING], strict=True):
        before = mended[-1] if mended else NOTHING
        mended.append(Word(word.text, _tag(word, before, after)))
    return mended


def _tag(word: Word, before: Word, after: Word) -> str:
    """The mended tag of a word between two others; of a mark the mark itself."""
    if not word.text[0].isalnum():
        return word.text
    if word.text in AUXILIARIES:
        return "VBZ"
    if word.text in VERBS:
        return "VB"
    if word.text in ADJECTIVES:
        return "JJ"
    if word.text in NOUNS:
        return "VBG" if after.tag == "DT" else "NN"  # "a bridge crossing the river" is the other one
    if word.noun and before.tag in ("PRP", "MD"):
        return "VB"  # "where can I land"
    if word.noun and word.text.endswith("ing") and before.text in AUXILIARIES and not after.noun:
        return "VBG"  # "how many cars are parking in front"
    if word.tag == "VBZ" and (before.tag in ("IN", "VBG", "DT", "CD") or before.adjective):
        return "NNS"  # "with running tracks"
    opened = before.tag in ("DT", "EX") or before.text in QUANTITY
    unfinished = after.noun or after.adjective or after.participle or after.tag in ("DT", "CC")
    if opened and (word.tag in ("VB", "VBP", "VBG") or word.tag == "JJ") and not unfinished:
        return "NN"  # "a shed", "the chaparral", "many roundabouts"
    if before.tag == "DT" and word.tag in ("VB", "VBP") and after.noun:
        return "NN"  # "a dump truck"
    return word.tag


def _chunks(words: Sequence[Word]) -> Iterator[list[str]]:
    """Runs of adjectives and nouns that end in a noun, without what does not tell a target."""
    run: list[Word] = []
    for i, word in enumerate(words):
        before = words[i - 1] if i else NOTHING
        after = words[i + 1] if i + 1 < len(words) else NOTHING
        if word.adjective and before.noun and not _leads_to_noun(words[i:]):  # "is the river wide": the noun is over
            yield from _target(run, word)
            run = []
        if word.noun or word.adjective or (word.participle and _modifies(word, before, after, i)):
            run.append(word)
        elif run and all(w.adjective or w.tag == "CC" for w in run) and word.tag in ("CC", ",") and after.adjective:
            run.append(Word(word.text, "CC"))  # "red and white towers"
        else:
            yield from _target(run, word)
            run = []
    yield from _target(run, NOTHING)


def _leads_to_noun(words: Sequence[Word]) -> bool:
    """Whether a noun follows these adjectives: then a noun before them was one too, as in "light blue roofs"."""
    return next((word.noun for word in words if not word.adjective), False)


def _modifies(word: Word, before: Word, after: Word, place: int) -> bool:
    """Whether a participle belongs to the noun after it: "the parked cars", "tree lined avenue", not "ships carrying coal"."""
    if not (after.noun or after.adjective):
        return False
    if before.noun or before.text in AUXILIARIES:
        return word.tag != "VBG" or place == 1  # "are swimming pools visible"
    return True


def _target(run: Sequence[Word], after: Word) -> Iterator[list[str]]:
    """The words of a run that name a target: one list, or none."""
    kept = [word for word in run if word.text not in QUANTITY and not (word.text in POSITION and word.text not in VAGUE_ALONE)]
    while kept and not _names(kept):
        if kept.pop().text in PICTURE:
            return
    while kept and (kept[0].tag == "CC" or (kept[0].text in POSITION and len(kept) > 1)):
        kept.pop(0)
    nouns = [word.text for word in kept if word.noun]
    if nouns and not (after.text == "of" and len(nouns) == 1 and nouns[0] in MEASURE):
        yield [word.text for word in kept if word.text.isalnum() or "-" in word.text]


def _names(words: Sequence[Word]) -> bool:
    """Whether the last of these words is a noun that can stand for a target."""
    *others, head = words
    if not head.noun or head.text in POSITION - VAGUE_ALONE:
        return False
    telling = any(word.text not in VAGUE | POSITION | PICTURE and word.tag != "CC" for word in others)
    return head.text not in VAGUE | POSITION | PICTURE or (head.text in VAGUE_ALONE and telling)
