"""How a generator is named, and what can be told of it, and of what it needs, before anything is loaded."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

from evcap.config import DecodingConfig, GeneratorConfig, Preset, assets_folder
from evcap.errors import EvcapError
from evcap.files import read_regular

KINDS = ("evcap", "blip2", "image-text", "endpoint")
CHATS = ("image-text", "endpoint")
CHAT_SIDE = 1344  # pixels of the longer side of the images that they are shown: three tiles of 448
# prompt of an image, and what is added for the names of one that has some
PROMPTS = {
    "blip2": ("", "a photo with {names}, showing"),  # a beginning, which OPT continues
    "image-text": ("Describe this image in one sentence.", " It may show: {names}."),
    "endpoint": ("Describe this image in one sentence.", " It may show: {names}."),
}
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
LARGEST_CONFIG = 10_000_000  # bytes
TEMPLATES = ("chat_template.jinja", "chat_template.json")


def chosen(settings: Preset, generator: str | GeneratorConfig | None = None, model: str | None = None) -> GeneratorConfig:
    """The generator that a preset names, or another in its place, with its prompts.

    generator: "evcap", a folder or hub name of an image-text-to-text model, or an http(s) address; what the preset tells of
    its own one of the same kind holds for it, too. model: the name at an endpoint.
    Raises EvcapError with one line for settings that make no sense.
    """
    config = settings.generator
    if isinstance(generator, GeneratorConfig):
        config = generator
    elif generator is not None:
        kind = "evcap" if generator == "evcap" else "endpoint" if ADDRESS.match(generator) else "image-text"
        config = config if config.kind == kind else GeneratorConfig(kind)
        config = replace(config, source="" if kind == "evcap" else generator)
    if model:
        if config.kind != "endpoint":
            raise EvcapError("--generator-model is the model's name at an endpoint: --generator http://HOST:PORT/v1")
        config = replace(config, model=model)
    if config.kind not in KINDS:
        raise EvcapError(f"preset '{settings.name}': unknown generator '{config.kind}', known: {', '.join(KINDS)}")
    if config.kind == "evcap":
        return _plain(settings, config)
    prompt, names = PROMPTS[config.kind]
    config = replace(
        config,
        prompt=prompt if config.prompt is None else config.prompt,
        names=names if config.names is None else config.names,
    )
    if "{names}" not in config.names:
        raise EvcapError(f"preset '{settings.name}': generator.names must hold {{names}}, the names from the memory")
    if config.max_length < 1:
        raise EvcapError(f"preset '{settings.name}': generator.max_length must be at least 1")
    return config


def _plain(settings: Preset, config: GeneratorConfig) -> GeneratorConfig:
    if config != GeneratorConfig():
        raise EvcapError(f"preset '{settings.name}': generator 'evcap' has no further settings; its prompt is `language`'s")
    return config


def check_generator(config: GeneratorConfig, settings: Preset) -> None:
    """Raises EvcapError, one line, for a generator of which something is not there. Hub names are not looked up."""
    if config.kind == "endpoint":
        from evcap.generators.chat_completions import Endpoint

        if not config.model:
            raise EvcapError(f"{config.source}: name the model there (--generator-model NAME)")
        Endpoint(config.source, config.model)
    elif config.kind == "blip2":
        if not settings.blip2:
            raise EvcapError(f"preset '{settings.name}': generator 'blip2' needs BLIP-2's tower and Q-Former: set `blip2`")
        found = _folder(config.source or settings.language.kind)
        if found and found[1].get("model_type") != "blip-2":
            raise EvcapError(f"{found[0]} is no BLIP-2: its config.json says model_type {found[1].get('model_type')!r}")
    elif config.kind == "image-text":
        found = _folder(config.source)
        if found and not _has_template(found[0]):
            raise EvcapError(f"{found[0]} has no chat template: an image-text-to-text model that was taught to chat is needed")


def _folder(source: str) -> tuple[Path, dict] | None:
    """A folder of transformers with its config.json, None for a hub name. Raises EvcapError for what is neither."""
    from evcap.weights.sources import local_or_hub

    place = local_or_hub(source)
    if not isinstance(place, Path):
        return None
    try:
        told = json.loads(read_regular(place / "config.json", LARGEST_CONFIG))
        if not isinstance(told, dict):
            raise ValueError
    except OSError:
        raise EvcapError(f"{place} is no folder of transformers: it has no config.json") from None
    except (ValueError, RecursionError):
        raise EvcapError(f"{place / 'config.json'} is damaged; get a fresh copy") from None
    return place, told


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in TEMPLATES):
        return True
    for name in ("tokenizer_config.json", "processor_config.json"):
        try:
            if json.loads(read_regular(folder / name, LARGEST_CONFIG)).get("chat_template"):
                return True
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
    return False


def encoder_tensors(preset: str | Path, settings: Preset, trained: str | Path | None = None) -> Path | None:
    """The file of trained tensors that a preset encodes with, or another in its place; None for BLIP-2 as it is.

    Raises EvcapError where there is none and one is needed.
    """
    if trained:
        return Path(trained)
    own = assets_folder(preset, settings) / "trained.safetensors" if settings.assets else None
    if settings.blip2 and not (own and own.exists()):
        return None  # BLIP-2 encodes as it is, before anything was trained
    if own is None:
        raise EvcapError(f"preset '{settings.name}' ships no trained tensors; name the file to encode with (--trained)")
    return own


def begins_empty(settings: Preset, config: GeneratorConfig, own: Path) -> bool:
    """Whether a preset without another memory begins with an empty one: BLIP-2 as it is. own: where its own would be."""
    return config.kind != "evcap" and bool(settings.blip2) and not (settings.assets and own.exists())


def side_of(config: GeneratorConfig) -> int:
    """Pixels of the longer side of the images that a generator is shown; 0 = none, it takes query features."""
    return CHAT_SIDE if config.kind in CHATS else 0


def decoding_of(settings: Preset, config: GeneratorConfig) -> DecodingConfig:
    """How a generator searches unless told otherwise: as the preset says, but chat models greedily and to their own length."""
    if config.kind not in CHATS:
        return settings.decoding
    return DecodingConfig(beams=1, min_length=0, max_length=config.max_length)


def check_decoding(config: GeneratorConfig, decoding: DecodingConfig) -> None:
    """Raises EvcapError for what a generator cannot do."""
    if config.kind == "endpoint" and (decoding.beams > 1 or decoding.min_length):
        what = "beam search" if decoding.beams > 1 else "least length"
        raise EvcapError(f"an endpoint knows no {what}: leave out --beams and --min-length, or use another generator")


def told(config: GeneratorConfig) -> str:
    """All that a generator depends on, as text."""
    return "evcap" if config.kind == "evcap" else json.dumps(asdict(config), sort_keys=True)
