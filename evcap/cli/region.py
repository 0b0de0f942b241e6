"""`evcap region`. Heavy modules are imported inside the command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import evcap
from evcap.cli.console import Progress, command, complain, report, tell_finished
from evcap.cli.interrupt import INTERRUPTED
from evcap.cli.options import Beams, MaxLength, Memory, Output, Preset, Quiet, Threads
from evcap.cli.outputs import check_outputs
from evcap.cli.overlays import Overlays
from evcap.cli.preflight import check_model, check_region_model, content_hash, made_with
from evcap.cli.region_boxes import Asked, AskedImage, asked_regions
from evcap.cli.region_results import RegionResult, RegionResults
from evcap.cli.result_file import ResultWriter
from evcap.cli.results import TableFormat
from evcap.errors import EvcapError

if TYPE_CHECKING:
    from PIL.Image import Image

    from evcap.datasets.box_files import AskedBox
    from evcap.images.opening import ImageError
    from evcap.regions.describe import RegionDescriber, RegionDescription

MOST_WINDOWS = 10


class Task(StrEnum):
    """What regions are described for."""

    auto = "auto"
    attributes = "attributes"
    caption = "caption"


@command
def region_command(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Images, folders (searched below), patterns; - reads paths from standard input. With --boxes: folders where "
            "its images are looked for, or those of its images that are meant.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X1,Y1,X2,Y2", help="A box in pixels of the file as stored; may be repeated."),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Boxes of images: COCO's JSON, or CSV with the columns file,x1,y1,x2,y2. Images are looked for beside "
            "FILE, then in each folder PATH.",
        ),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLUMNS", help="The image itself and the cells of a grid, as 2x3.")
    ] = None,
    windows: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Windows of a few sizes and shapes in which there is most likely something; no detections: a window does "
            "not fit what it shows.",
        ),
    ] = False,
    most: Annotated[int | None, typer.Option(min=1, help=f"Windows of --all, at most; {MOST_WINDOWS} by default.")] = None,
    form: Annotated[TableFormat, typer.Option("--format", help="How results are written.")] = TableFormat.text,
    output: Output = None,
    overlay: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.png|FOLDER/",
            help="Draw the regions, the views that were looked at and the captions of one image into this PNG, or of each "
            "image into one in this folder.",
        ),
    ] = None,
    task: Annotated[Task, typer.Option(help="What for, which decides how much around a box is looked at.")] = Task.auto,
    words: Annotated[str | None, typer.Option(metavar="WORD,...", help="Control words that captions should use.")] = None,
    tags: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tags to look for, one a line, in place of the preset's.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Classes to choose from, one a line, in place of the preset's.")
    ] = None,
    num_captions: Annotated[int, typer.Option(min=1, help="Captions for each region.")] = 1,
    beams: Beams = None,
    max_length: MaxLength = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Regions that go through the model together.")] = 32,
    memory: Memory = None,
    preset: Preset = "embedded",
    threads: Threads = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Skip images whose regions FILE.part, or else FILE, holds, all without error (jsonl, csv)."
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Describe regions of images: captions, names, tags and the class of what is in a box.

    An image's lines are written together. A box that cannot be described has its line, too, with the reason.
    """
    from evcap.runtime import use_threads

    use_threads(threads)
    if most and not windows:
        raise EvcapError("--most is about the windows of --all")
    asked = asked_regions(paths or [], box or [], boxes, grid, windows, most or MOST_WINDOWS)
    own = {"tags": _listed(tags), "classes": _listed(classes)}
    model = check_model(preset, memory)
    tensors = check_region_model(preset, model)
    decoding = _decoding(model.regions.decoding, num_captions, beams, max_length)
    overlays = Overlays(overlay, asked.files)
    used = [*asked.files, *filter(None, (boxes, tags, classes)), *overlays.in_folder]
    check_outputs({"--output": output, "--overlay": overlays.file}, used)
    said = [word.strip() for word in (words or "").split(",") if word.strip()]
    about = {"regions": asked.told, "region-tensors": content_hash(tensors), "task": str(task), "words": ",".join(said)}
    for name, file in (("tags", tags), ("classes", classes)):
        listed = file or tensors.with_name(f"{name}.txt")
        about[name] = content_hash(listed) if listed.exists() else ""
    settings = {"evcap": evcap.__version__} | made_with(preset, model, memory) | about | {"num-captions": num_captions}
    settings |= {name.replace("_", "-"): value for name, value in asdict(decoding).items()}
    options = {"task": str(task), "words": said, "num_captions": num_captions, "decoding": decoding, "batch_size": batch_size}
    load = cache(partial(_describer, preset, memory, **own))  # loaded when a box is there that can be described
    with ResultWriter(output, form, resume, settings, RegionResults, asked.wanted) as writer:
        todo = [image for image in asked.images if image.file is None or not writer.is_finished(image.file)]
        tell_finished(len(asked.images) - len(todo), len(asked.images), quiet, writer.remark)
        failures: list[str] = []
        done = regions = 0
        try:
            with closing(_all_answers(todo, asked, load, options)) as answers, Progress(len(todo), quiet) as progress:
                for image, picture, results, described in answers:
                    overlays.draw(image.file, picture, results, described)
                    writer.write(RegionResults(str(image.file or ""), results))
                    failures += [result.error for result in results if result.error]
                    regions += len(results)
                    done += 1
                    progress.advance()
            writer.complete()
        except KeyboardInterrupt:
            report(failures, regions, "regions")
            kept = bool(writer.part) and form != TableFormat.text
            way = f"; the finished lines are in {writer.part}, which goes on with --resume" if kept else ""
            complain(f"interrupted after {done} of {len(todo)} images{way}")
            raise typer.Exit(INTERRUPTED) from None
    report(failures, regions, "regions")
    if failures:
        raise typer.Exit(1)


def _listed(file: Path | None) -> list[str] | None:
    """The lines of a file of one's own, each once. Raises EvcapError for a file that holds none."""
    from evcap.datasets.coco import read_name_list

    if file is None:
        return None
    texts = list(dict.fromkeys(row[0] for row in read_name_list(file)))
    if not texts:
        raise EvcapError(f"{file} holds nothing: write one a line")
    return texts


def _decoding(usual, num_captions: int, beams: int | None, max_length: int | None):
    """The preset's decoding of regions with the settings that are given."""
    given = {name: value for name, value in (("beams", beams), ("max_length", max_length)) if value is not None}
    decoding = replace(usual, **given)
    if decoding.min_length > decoding.max_length:
        raise EvcapError(f"--max-length {max_length} is less than the preset's min_length, {decoding.min_length}")
    return replace(decoding, beams=max(decoding.beams, num_captions))


def _describer(preset: str, memory: Path | None, tags: Sequence[str] | None, classes: Sequence[str] | None) -> RegionDescriber:
    describer = evcap.load(preset, memory).region_describer
    if tags is not None:
        describer.set_tags(tags)
    if classes is not None:
        describer.set_classes(classes)
    return describer


def _all_answers(
    todo: Sequence[AskedImage], asked: Asked, load: Callable[[], RegionDescriber], options: dict
) -> Iterator[tuple[AskedImage, Image | ImageError | None, list[RegionResult], list[RegionDescription | None]]]:
    """(image, as opened if it was, what became of its regions, what is said of each), while the next images are opened."""
    from evcap.images.ahead import open_ahead
    from evcap.images.opening import open_image

    def opened(image: AskedImage) -> Image | None:
        nothing = not asked.place and all(box.error for box in image.boxes)
        return None if nothing else open_image(image.file)  # every pixel: boxes are in pixels

    with closing(open_ahead(todo, 1, opened)) as batches:
        for ((image, picture),) in batches:
            yield image, picture, *_answers(image, picture, asked, load, options)


def _answers(
    image: AskedImage, picture: Image | ImageError | None, asked: Asked, load: Callable[[], RegionDescriber], options: dict
) -> tuple[list[RegionResult], list[RegionDescription | None]]:
    """What became of the regions of one image, and what is said of each; picture: None where no box can be described."""
    from evcap.datasets.box_files import AskedBox
    from evcap.images.opening import ImageError
    from evcap.images.orientation import stored_orientation, to_stored, to_upright

    boxes = image.boxes or [AskedBox(None, str(image.file), None)]
    try:
        if isinstance(picture, ImageError):
            raise picture
        turned = stored_orientation(image.file) if picture else 1
        if asked.place:
            placed = [to_stored(box, turned, picture.size) for box in asked.place(picture, load)]
            boxes = [AskedBox(number, str(image.file), box) for number, box in enumerate(placed, 1)]
        errors = [box.error or _wrong(box, image.file, picture, turned) for box in boxes]
        right = [to_upright(box.box, turned, picture.size) for box, error in zip(boxes, errors, strict=True) if not error]
        replies = iter(load().describe(picture, right, **options) if right else [])
    except ImageError as error:
        errors, replies = [box.error or str(error) for box in boxes], iter(())
    except EvcapError:
        raise  # the image is open: what is wrong now is a setting, a memory or a model
    except Exception as error:  # whatever one image does to the model, the others get their answers
        reason = f"{image.file}: {type(error).__name__}: {' '.join(str(error).split())}"
        errors, replies = [box.error or reason for box in boxes], iter(())
    described = [None if error else next(replies) for error in errors]
    results = [_result(box, error, said) for box, error, said in zip(boxes, errors, described, strict=True)]
    return results, described


def _wrong(box: AskedBox, file: Path, picture: Image, turned: int) -> str | None:
    """What is wrong with a box of an open image. turned: its orientation as stored."""
    from evcap.images.orientation import stored_size
    from evcap.regions.views import checked_regions

    try:
        checked_regions([box.box], *stored_size(picture.size, turned))
    except EvcapError as error:
        return f"{file}: {error}"
    return None


def _result(box: AskedBox, error: str | None, said: RegionDescription | None) -> RegionResult:
    if said is None:
        return RegionResult(box.id, box.box, error=error)
    names = [(name.name, name.similarity) for name in said.names]
    return RegionResult(box.id, box.box, said.captions, names, said.tags, said.class_name, said.views)
