"""Captions of, and answers about, images that no model takes whole: places are found and described, and what is said of them
answers (ImageRAG, arXiv 2411.07688, with EVCap or another generator)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from evcap.captioner import Caption, Captioner
from evcap.config import GeneratorConfig, assets_folder, load_preset
from evcap.errors import EvcapError
from evcap.gigapixel.ask.evidence import Evidence
from evcap.gigapixel.ask.phrase_models import ModelPhrases
from evcap.gigapixel.ask.question import Question, check_understood
from evcap.gigapixel.ask.reader import image_of, open_reader
from evcap.gigapixel.search.calibration import calibrated
from evcap.gigapixel.search.gallery import Gallery
from evcap.gigapixel.search.retrieval import Place, Retriever
from evcap.gigapixel.search.towers import Tower, open_tower
from evcap.gigapixel.tiles.files import stored_plan
from evcap.gigapixel.tiles.index import MISSING, TileIndex
from evcap.gigapixel.tiles.plans import make_plan
from evcap.gigapixel.tiles.promising import fill_promising
from evcap.memory.memory import RetrievedName
from evcap.progress import Progress, silent
from evcap.raster.geo import cell_words
from evcap.raster.raster import Raster

BUDGET = 2000  # tiles that are encoded for a question where there is no whole index: two minutes on two cores
TOLD = 5  # places that a caption tells of
NO_PHRASES = "the model that finds phrases is evcap's own: use --phrases-by nouns or endpoint with another generator"
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass(frozen=True)
class Answer:
    """text: what is said. evidence: the overview, then the places described. path: how they were found, "fast", "slow" or
    "none". count: places found, for questions of count and presence. encoded, tiles: of the index, empty ones left out."""

    text: str
    path: str
    evidence: list[Evidence] = field(default_factory=list)
    count: int | None = None
    encoded: int = 0
    tiles: int = 0

    def as_caption(self) -> Caption:
        """The text as a photo's caption, with the names of all that was described, each once, the most similar first."""
        names: dict[str, float] = {}
        for name, similarity in sorted((n for item in self.evidence for n in item.names), key=lambda n: -n[1]):
            names.setdefault(name, similarity)
        return Caption(self.text, [self.text], [RetrievedName(name, similarity, -1) for name, similarity in names.items()])


class Analyst:
    """A captioner that finds its way in big images.

    tower: looks at tiles and reads phrases. galleries: images of labels, for phrases that are labels.
    """

    def __init__(self, captioner: Captioner, tower: Tower, galleries: Sequence[Gallery]):
        for gallery in galleries:
            if gallery.memory.encoder != tower.encoder_fingerprint:
                raise EvcapError("the gallery was made by another encoder; build it again with this preset")
        self.captioner, self.tower, self.galleries = captioner, tower, list(galleries)
        self.retriever = Retriever(tower, galleries, calibrated(captioner.preset))
        self.labels = [label for gallery in galleries for label in gallery.labels]
        self._reader = open_reader(captioner)

    @classmethod
    def load(
        cls,
        preset: str | Path = "embedded",
        memory: str | Path | None = None,
        galleries: Sequence[str | Path] = (),
        generator: str | GeneratorConfig | None = None,
    ) -> Analyst:
        """Open a preset with its gallery, or with others in its place; any visual-name memory of its encoder will do.

        galleries: as `Gallery.open` takes them. generator: as `Captioner.load` does.
        Raises EvcapError with one line when a part is missing, damaged or made for another model.
        """
        settings = load_preset(preset)
        calibrated(settings)
        captioner = Captioner.load(preset, memory, merged=False, generator=generator)
        own = assets_folder(preset, settings) / "gallery"
        folders = list(galleries) or ([own] if own.is_dir() else [])
        tower = open_tower(captioner)
        return cls(captioner, tower, [Gallery.open(folder, tower.encoder_fingerprint) for folder in folders])

    def phrases(self, question: str) -> list[str]:
        """What a question is about, by the language model: a back-end of `analyse`. Raises NoPhrases, and EvcapError where
        another generator stands in its place."""
        if self.captioner.generator_config.kind != "evcap":
            raise EvcapError(NO_PHRASES)
        language = self.captioner.model.language
        return ModelPhrases(language.plain, language.tokenizer)(question)

    def open_index(self, raster: Raster, folder: str | Path) -> TileIndex:
        """The tile index in a folder with whatever plan it has; an empty one of a pyramid if there is none."""
        name, options = stored_plan(folder), {}
        if name is None:
            name, options = "pyramid", {"side": self.tower.image_size}
        plan = make_plan(name, raster.width, raster.height, **options)
        return TileIndex.open(folder, raster, plan, self.tower.encoder_fingerprint, self.tower.shape)

    def ask(
        self,
        index: TileIndex,
        question: Question,
        budget: int = BUDGET,
        progress: Progress = silent,
        overview: Evidence | None = None,
        thorough: bool = False,
    ) -> Answer:
        """Answer a question about the raster of an index, which is filled where that looks promising if it is not complete.

        The likeliest of its choices, if it has some; of one that names nothing from the overview alone.
        overview: that of an earlier answer about the same image, which then is not captioned again. thorough: every place is
        captioned, not the best `contexts` alone, from which the language model answers either way.
        Raises EvcapError for another question that names nothing or was not understood, and when the image cannot be read.
        """
        if not (question.phrases or question.choices):
            raise EvcapError(
                f"'{question.text}' names nothing that could be looked for; ask about things, as in \"any ships?\""
            )
        check_understood(question)
        counting = question.kind in ("count", "presence")
        found: list[list[Place]] = []
        if question.phrases:
            self._fill(index, question.phrases, budget, progress)
            found = self.retriever.find(index, question.phrases)
        sure = [[place for place in places if place.sure] for places in found]
        every, contexts = _in_turn(sure), self.retriever.rule.contexts
        described = every if thorough else every[:contexts]
        evidence = self._describe(index.raster, described, overview)
        told = evidence[: 1 + contexts]
        counts = [len(places) for places in sure]
        if question.choices:
            text = self._reader.choose(question, told, index.raster)
        elif question.kind == "count":
            text = "; ".join(_counted(n, phrase) for n, phrase in zip(counts, question.phrases, strict=True)).capitalize() + "."
        elif question.kind == "presence":
            text = _presence(question.phrases, sure, index.raster)
        elif question.kind == "where" or not described:
            text = _where(question.phrases, sure, index.raster)
        else:
            text = self._reader.answer(question, told, index.raster)
        evidence += [_undescribed(place) for place in every[len(described) :]]
        return self._answer(index, text, every, evidence, sum(counts) if counting else None)

    def caption(self, index: TileIndex, budget: int = BUDGET, progress: Progress = silent) -> Answer:
        """A paragraph: the whole image first, then what the labels of the galleries find in it, where they find it.

        There is no question here, so the labels ask: of all places that are sure, one a label, the best that do not overlap.
        That is ours, neither paper has it.
        """
        phrases = self.labels or [hit.name for hit in self.captioner.names(self._overview(index.raster))[0]]
        self._fill(index, phrases, budget, progress)
        found = self.retriever.survey(index, phrases, TOLD)
        evidence = self._describe(index.raster, found)
        whole, *parts = evidence
        sentences = [_sentence(whole.caption)]
        size = index.plan.width, index.plan.height
        sentences += [_sentence(f"{_place_words(cell_words(part.box, *size))}: {part.caption}") for part in parts]
        return self._answer(index, " ".join(sentences), found, evidence, None)

    def _overview(self, raster: Raster) -> Image.Image:
        return image_of(raster, (0, 0, raster.width, raster.height), self.captioner.image_side)

    def _fill(self, index: TileIndex, phrases: Sequence[str], budget: int, progress: Progress) -> None:
        if index.counts()[MISSING]:

            def promising(numbers: np.ndarray, queries: np.ndarray) -> np.ndarray:
                return np.max([scores.of("both") for scores in self.retriever.scores([queries], phrases)], axis=0)

            fill_promising(index, self.tower, promising, budget, progress=progress)

    def _describe(self, raster: Raster, places: Sequence[Place], overview: Evidence | None = None) -> list[Evidence]:
        """The overview, unless it is there already, and the places, captioned."""
        items = [_undescribed(place) for place in places]
        if overview is None:
            items.insert(0, Evidence((0, 0, raster.width, raster.height), 1.0, "", path="overview"))
        images = [image_of(raster, item.box, self.captioner.image_side) for item in items]
        said = self.captioner.caption_features(self.captioner.query_features(images), images=images)
        captioned = [
            replace(item, caption=caption.caption, names=[(hit.name, hit.similarity) for hit in caption.names])
            for item, caption in zip(items, said, strict=True)
        ]
        return captioned if overview is None else [overview, *captioned]

    @staticmethod
    def _answer(index: TileIndex, text: str, places: Sequence[Place], evidence: list[Evidence], count: int | None) -> Answer:
        paths = {place.path for place in places}
        path = "none" if not paths else "fast" if "fast" in paths else "slow"
        missing, encoded, _ = index.counts()
        return Answer(text, path, evidence, count, encoded, missing + encoded)


def _undescribed(place: Place) -> Evidence:
    return Evidence(place.box, place.score, "", path=place.path, phrase=place.phrase)


def _in_turn(found: Sequence[Sequence[Place]]) -> list[Place]:
    """The best place of each phrase, then the second best of each, and so on."""
    return [place for rank in zip_longest(*found) for place in rank if place]


def _counted(count: int, phrase: str) -> str:
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{number} {'place' if count == 1 else 'places'} with {phrase}"


def _presence(phrases: Sequence[str], found: Sequence[Sequence[Place]], raster: Raster) -> str:
    said = "Yes" if any(found) else "No"
    return f"{said}: {_where(phrases, found, raster)}"


def _where(phrases: Sequence[str], found: Sequence[Sequence[Place]], raster: Raster) -> str:
    """What was found in which part of the image."""
    parts = []
    for phrase, places in zip(phrases, found, strict=True):
        cells = dict.fromkeys(cell_words(place.box, raster.width, raster.height) for place in places)
        parts.append(f"{phrase} {_listed([_place_words(cell).lower() for cell in cells])}" if cells else f"no {phrase} found")
    return _sentence("; ".join(parts))


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _place_words(cell: str) -> str:
    return "In the centre" if cell == "centre" else f"In the {cell}"


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."
