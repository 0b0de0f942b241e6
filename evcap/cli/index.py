"""`evcap index`: images too large to open. Heavy modules are imported inside the commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evcap.cli.console import command, complain, report
from evcap.cli.interrupt import INTERRUPTED
from evcap.cli.options import Bands, EngineChoice, Stretch, Threads
from evcap.cli.outputs import check_folder
from evcap.cli.preflight import check_model
from evcap.cli.progress import shown
from evcap.encoding.ray import Engine
from evcap.errors import EvcapError
from evcap.raster.display import Display

if TYPE_CHECKING:
    from evcap.gigapixel.search.towers import Tower
    from evcap.gigapixel.tiles.index import TileIndex

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".png", ".jpg", ".jpeg")  # of the rasters that a folder stands for
AT_ONCE = 64  # files that are open while a cluster works on them


@command
def index_command(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Rasters, folders (searched below), patterns.")],
    index: Annotated[
        Path | None,
        typer.Option(help="Folder of the index, in place of FILE.evcap beside the file; of several files, folder for all."),
    ] = None,
    plan: Annotated[
        str, typer.Option(help="How the image is divided: pyramid, vit, grid, cc, or a whole name as pyramid-288-0.25.")
    ] = "pyramid",
    tile: Annotated[
        int | None, typer.Option(min=1, help="Side of a tile in pixels, of pyramid (default: what the encoder takes) or vit.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Share of its side that a tile of a pyramid has in common with the next.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles that go through the encoder together.")] = 16,
    engine: EngineChoice = Engine.local,
    preset: Annotated[str, typer.Option(help="Preset whose encoder looks: a shipped name or a YAML file.")] = "embedded",
    bands: Bands = None,
    stretch: Stretch = None,
    anew: Annotated[bool, typer.Option("--anew", help="Encode all tiles again, in place of the index that is there.")] = False,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, remarks and closing lines.")] = False,
) -> None:
    """Encode the tiles of large images once, so that questions about them take seconds. Stopped? The same command goes on."""
    need_rasterio()
    display = Display.read(bands, stretch)
    from evcap.encoding.keys import Encoder
    from evcap.gigapixel.search.towers import open_tower
    from evcap.gigapixel.tiles.by_ray import fill_by_ray
    from evcap.gigapixel.tiles.plans import make_plan
    from evcap.images.opening import find_images
    from evcap.raster.raster import Raster
    from evcap.runtime import use_threads

    use_threads(threads)
    files = find_images(paths, SUFFIXES, complain)
    folders = _folders(files, index, single=len(paths) == 1 and not Path(paths[0]).is_dir())
    options = _plan_options(plan, tile, overlap)
    for folder in folders:
        check_folder("the tile index", folder)
    if len(files) == 1:
        with Raster(files[0], display.bands, display.stretch):  # what is wrong with it is told before the model is loaded
            pass
    check_model(preset, with_memory=False)
    encoder = Encoder(preset)
    tower = open_tower(encoder.captioner)
    if plan == "pyramid":
        options.setdefault("side", tower.image_size)

    def fill_alone(indexes: list[TileIndex]) -> list[str | None]:
        (only,) = indexes
        try:
            only.fill(tower, batch=batch_size, progress=shown(quiet))
        except EvcapError as error:
            return [str(error)]
        return [None]

    def fill_together(indexes: list[TileIndex]) -> list[str | None]:
        return fill_by_ray(indexes, encoder, batch_size, shown(quiet))

    fill, at_once = (fill_alone, 1) if engine == Engine.local else (fill_together, AT_ONCE)
    failures: list[str] = []
    try:
        for start in range(0, len(files), at_once):
            these = list(zip(files, folders, strict=True))[start : start + at_once]
            failures += _index(these, tower, partial(make_plan, plan, **options), display, anew, fill, quiet)
    except KeyboardInterrupt:
        complain("interrupted; what is encoded is kept, the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    if failures and len(files) == 1:
        raise EvcapError(failures[0])
    report(failures, len(files), "files")
    if failures:
        raise typer.Exit(1)


def need_rasterio() -> None:
    """Raises EvcapError if the extra is not installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError as error:
        raise EvcapError(f"large images need rasterio ({error}): pip install -e '.[uhr]'") from None


def index_folder(file: Path, given: Path | None) -> Path:
    """Where the index of a file is; says so if that is in the user's cache folder."""
    from evcap.gigapixel.tiles.files import default_folder

    folder = given or default_folder(file)
    if given is None and folder.parent != file.parent:
        complain(f"{file}: nobody can write beside it; its index is in {folder}")
    return folder


def _plan_options(plan: str, tile: int | None, overlap: float | None) -> dict:
    """Options of make_plan. Raises EvcapError for those that the plan does not take."""
    from evcap.gigapixel.tiles.plans import make_plan

    options = {key: value for key, value in (("side", tile), ("overlap", overlap)) if value is not None}
    make_plan(plan, 1, 1, **options)
    return options


def _folders(files: list[Path], index: Path | None, single: bool) -> list[Path]:
    if index is None:
        return [index_folder(file, None) for file in files]
    if single and len(files) == 1:
        return [index]
    folders = [index / f"{file.name}.evcap" for file in files]
    if len(set(folders)) < len(folders):
        raise EvcapError(f"some of these files have the same name, so that their indexes in {index} would be one; do without")
    return folders


def _index(
    files: list[tuple[Path, Path]], tower: Tower, plan: Callable, display: Display, anew: bool, fill: Callable, quiet: bool
) -> list[str]:
    """Fill the indexes of files, given with their folders. Returns a line for each file that failed.

    plan: width and height -> how they are divided.
    """
    from evcap.gigapixel.tiles.index import ENCODED, TileIndex
    from evcap.raster.raster import Raster

    failures, indexes = [], []
    with ExitStack() as rasters:
        for file, folder in files:
            try:
                raster = rasters.enter_context(Raster(file, display.bands, display.stretch))
                divided = plan(raster.width, raster.height)
                indexes.append(TileIndex.open(folder, raster, divided, tower.encoder_fingerprint, tower.shape, anew))
            except EvcapError as error:
                failures.append(str(error))
                continue
            for note in [] if quiet else raster.notes:
                complain(f"{file}: {note}")
        before, start = [index.counts()[ENCODED] for index in indexes], time.monotonic()
        for index, error, known in zip(indexes, fill(indexes) if indexes else [], before, strict=True):
            failures += [error] if error else []
            if not error and not quiet:
                typer.echo(_closing_line(index, known, time.monotonic() - start), err=True)
    return failures


def _closing_line(index: TileIndex, before: int, seconds: float) -> str:
    _, encoded, empty = index.counts()
    told = f"{index.raster.path}: {encoded:,} tiles encoded, {empty:,} empty, of {len(index.plan):,}"
    if encoded == before:
        return f"{told}; there was nothing to do"
    earlier = f" ({before:,} of them before)" if before else ""
    return f"{told}{earlier}, in {seconds:.1f} s ({(encoded - before) / seconds:.1f} a second); in {index.folder}"
