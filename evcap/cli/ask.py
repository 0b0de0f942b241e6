"""`evcap ask`, and `evcap caption` of images that no viewer opens. Heavy modules are imported inside the commands."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evcap.cli.console import command, complain
from evcap.cli.index import index_folder, need_rasterio
from evcap.cli.options import Bands, Generator, GeneratorModel, Memory, Preset, Stretch, Threads
from evcap.cli.outputs import check_folder, check_outputs
from evcap.cli.preflight import check_model
from evcap.cli.progress import shown
from evcap.config import GeneratorConfig, load_preset
from evcap.errors import EvcapError
from evcap.raster.display import Display

if TYPE_CHECKING:
    from evcap.gigapixel.ask.answer import Analyst, Answer
    from evcap.gigapixel.ask.question import Question
    from evcap.gigapixel.tiles.index import TileIndex

PHOTOS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif")  # which GDAL reads too, where they are too large for Pillow


class PhrasesBy(StrEnum):
    nouns = "nouns"
    model = "model"
    endpoint = "endpoint"


@command
def ask_command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="GeoTIFF, VRT, JPEG 2000, PNG or JPEG, of any size.")],
    question: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help='Like "is there an airplane?"; - reads questions, one a line.')
    ],
    choice: Annotated[list[str] | None, typer.Option(help="An answer to choose from; may be repeated.")] = None,
    evidence: Annotated[Path | None, typer.Option(help="Write where it looked to this GeoJSON file.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Draw where it looked into this PNG file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Answer with one line of JSON that tells all.")] = False,
    index: Annotated[Path | None, typer.Option(help="Folder of the tile index, in place of IMAGE.evcap.")] = None,
    gallery: Annotated[
        list[str] | None,
        typer.Option(
            help="Gallery (a memory) to look labels up in, FOLDER or FOLDER=DELTA, in place of the shipped one; in order."
        ),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Tiles to encode where `evcap index` has not been run.")] = 2000,
    phrases_by: Annotated[
        PhrasesBy, typer.Option(help="Who finds what the question is about: its nouns, the language model, an endpoint.")
    ] = PhrasesBy.nouns,
    endpoint: Annotated[str | None, typer.Option(help="OpenAI-compatible address, as http://localhost:8000/v1.")] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="The model's name there.")] = None,
    memory: Memory = None,
    preset: Preset = "embedded",
    generator: Generator = None,
    generator_model: GeneratorModel = None,
    bands: Bands = None,
    stretch: Stretch = None,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no remarks.")] = False,
) -> None:
    """Ask about an image of any size; the answer says where it looked."""
    need_rasterio()
    from evcap.runtime import use_threads

    use_threads(threads)
    check_calibrated(preset)
    display = Display.read(bands, stretch)
    who = _checked_generator(preset, generator, generator_model, phrases_by)
    several = len(question) > 1 or question == ["-"]
    if several and (choice or evidence or overlay):
        raise EvcapError("--choice, --evidence and --overlay go with one question")
    from evcap.images.opening import stored_path

    failed, overview = 0, None
    image = stored_path(image)
    folder = index_folder(image, index)
    with opened(image, display) as raster:
        check_outputs({"--evidence": evidence, "--overlay": overlay}, [image])
        check_folder("the tile index", folder)
        check_model(preset, memory, generator=who)
        load = cache(partial(_load, raster, folder, preset, memory, gallery or (), who))
        for text in _questions(question):
            start = time.monotonic()
            try:
                asked = _analysed(text, phrases_by, endpoint, endpoint_model, choice or (), load)
                analyst, tiles = load()
                answer = analyst.ask(tiles, asked, budget, shown(quiet), overview, thorough=bool(evidence or overlay))
                overview = answer.evidence[0]
            except EvcapError as error:
                if not several:
                    raise
                complain(str(error))
                failed += 1
                continue
            _write(raster, asked, answer, evidence, overlay)
            _tell(raster, asked, answer, several, json, quiet, time.monotonic() - start)
        for note in [] if quiet or json else raster.notes:
            complain(f"{image}: {note}")
    if failed:
        raise typer.Exit(1)


def _questions(given: Sequence[str]) -> Iterator[str]:
    """Those of the command line, or, each as soon as it is there, the lines of standard input that are not empty."""
    if given != ["-"]:
        yield from given
        return
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    yield from filter(None, (line.replace("\ufeff", "").strip() for line in sys.stdin))  # each file may begin with such a mark


def _checked_generator(preset: str, generator: str | None, model: str | None, phrases_by: PhrasesBy) -> GeneratorConfig:
    from evcap.generators.options import chosen

    who = chosen(load_preset(preset), generator, model)
    if phrases_by == PhrasesBy.model and who.kind != "evcap":
        raise EvcapError("--phrases-by model asks evcap's own language model: use nouns or endpoint with another generator")
    return who


def _load(
    raster, folder: Path, preset: str, memory: Path | None, galleries: Sequence[str], generator: GeneratorConfig
) -> tuple[Analyst, TileIndex]:
    from evcap.gigapixel.ask.answer import Analyst

    analyst = Analyst.load(preset, memory, galleries, generator)
    return analyst, analyst.open_index(raster, folder)


def _analysed(text: str, by: PhrasesBy, endpoint: str | None, model: str | None, choices: Sequence[str], load) -> Question:
    from evcap.gigapixel.ask.question import analyse, check_understood

    back_end = load()[0].phrases if by == PhrasesBy.model else _backend(by, endpoint, model)
    asked = analyse(text, back_end, choices)
    check_understood(asked)
    if not (asked.phrases or asked.choices):
        way = 'ask about things, as in "any ships?", or let `evcap caption` describe the whole image'
        raise EvcapError(f"'{asked.text}' names nothing that could be looked for; {way}")
    return asked


def _write(raster, asked: Question, answer: Answer, evidence: Path | None, overlay: Path | None) -> None:
    """The files of an answer that are wanted."""
    if evidence:
        from evcap.gigapixel.ask.evidence import write_geojson

        write_geojson(evidence, raster, answer.evidence, asked.text, answer.text)
    if overlay:
        from evcap.plots.evidence import draw_overlay

        draw_overlay(overlay, raster, answer.evidence, asked.text, answer.text)


def _tell(raster, asked: Question, answer: Answer, several: bool, json: bool, quiet: bool, seconds: float) -> None:
    if json:
        from evcap.gigapixel.ask.evidence import evidence_json

        found = answer.path, answer.evidence, answer.encoded, answer.tiles, seconds
        typer.echo(evidence_json(raster, asked, answer.text, *found))
        return
    typer.echo(f"{asked.text} {answer.text}" if several else answer.text)
    _tell_places(answer, raster)
    if not quiet:
        if asked.note:
            complain(asked.note)
        complain(f"looked at {answer.encoded:,} of {answer.tiles:,} tiles, {seconds:.1f} s")


def _backend(phrases_by: PhrasesBy, endpoint: str | None, model: str | None):
    if phrases_by != PhrasesBy.endpoint:
        if endpoint or model:
            raise EvcapError("--endpoint and --endpoint-model go with --phrases-by endpoint")
        return None
    if not (endpoint and model):
        raise EvcapError("--phrases-by endpoint needs --endpoint URL and --endpoint-model NAME")
    from evcap.gigapixel.ask.phrase_models import EndpointPhrases

    return EndpointPhrases(endpoint, model)


@contextmanager
def opened(image: Path, display: Display) -> Iterator:
    from evcap.raster.raster import Raster

    with Raster(image, display.bands, display.stretch) as raster:
        yield raster


def _tell_places(answer: Answer, raster) -> None:
    from evcap.gigapixel.ask.evidence import numbered
    from evcap.raster.geo import cell_words

    for number, item in numbered(answer.evidence):
        if number:
            where = cell_words(item.box, raster.width, raster.height)
            said = f": {item.caption}" if item.caption else ""
            typer.echo(f"  {number}  {item.score:.2f}  {where}, pixels {' '.join(map(str, item.box))}{said}")


def is_large(path: Path) -> bool:
    """Whether a file is captioned by its tiles: a TIFF, VRT or JPEG 2000 of 50 megapixels or more, or a photo of more than
    Pillow takes whole."""
    from evcap.images.kinds import RASTERS, pillow_takes, reads_rasters

    suffix = path.suffix.lower()
    if suffix not in (*RASTERS, *PHOTOS) or not path.is_file() or not reads_rasters():
        return False
    if suffix in PHOTOS:
        return not pillow_takes(path)
    from evcap.raster.whole import is_large

    return is_large(path)


def check_calibrated(preset: str) -> None:
    """Raises EvcapError for a preset that does not say from which score on something counts as found."""
    from evcap.gigapixel.search.calibration import calibrated

    calibrated(load_preset(preset))


def large_captions(
    files: Sequence[Path],
    preset: str,
    memory: Path | None,
    quiet: bool,
    display: Display,
    generator: GeneratorConfig,
) -> Iterator[tuple]:
    """(file, Caption, None), or (file, None, reason in one line), for each large image. The model is loaded at the first."""
    from evcap.gigapixel.ask.answer import Analyst

    analyst = None
    for file in files:
        try:
            check_calibrated(preset)
            with opened(file, display) as raster:
                analyst = analyst or Analyst.load(preset, memory, (), generator)
                said = analyst.caption(analyst.open_index(raster, index_folder(file, None)), progress=shown(quiet))
        except (EvcapError, OSError) as error:  # whatever it is, what is done before and after is kept
            reason = str(error)
            yield file, None, reason if reason.startswith(f"{file}: ") else f"{file}: {reason}"
        else:
            yield file, said.as_caption(), None
