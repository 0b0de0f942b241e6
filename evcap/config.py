"""Typed settings. A preset is one YAML file that holds every size a model depends on; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

from evcap.errors import EvcapError
from evcap.text_files import brief
from evcap.yaml_files import from_dict, overlaid, read_yaml

PRESET_FOLDER = Path(__file__).parent / "presets"


def _unless(setting: str, default: Callable):
    """What a file must set unless it sets another thing, which then tells it."""
    return field(default_factory=default, metadata={"unless": setting})


def _at_least(least: float, default: float):
    """A number that a file may not set lower: nothing, or the wrong thing, would be found without a word."""
    return field(default=default, metadata={"least": least})


@dataclass(frozen=True)
class VisionConfig:
    """The frozen image tower. `tokens` x `width` is the shape of the patch tokens it gives for one image.

    With a `source` its sizes, mean and std are read there (evcap/weights/tower_settings.py), but for what a preset sets.
    """

    kind: str  # "efficientnet-lite2", "blip2-vit" or "transformers"
    image_size: int = _unless("source", int)
    width: int = _unless("source", int)
    tokens: int = _unless("source", int)
    mean: list[float] = _unless("source", list)
    std: list[float] = _unless("source", list)
    patch_size: int = 14
    depth: int = 39
    heads: int = 16
    intermediate: int = 6144
    source: str = ""  # folder or hub name of a "transformers" tower
    adapted_from: int | None = None  # the first block of an "efficientnet-lite2" tower that pretraining adapts, with all behind

    @property
    def opened_side(self) -> int:
        """Pixels a side to which larger images may be shrunk while they are opened: the same for all who look at them."""
        return 2 * self.image_size


# What the fingerprint of an encoder tells of its tower. The list is part of the memories' format: one more setting in it would
# make all memories those of another encoder. A setting that comes later is told only where it differs from its default.
FINGERPRINTED = ("kind", "image_size", "width", "tokens", "mean", "std", "patch_size", "depth", "heads", "intermediate")


def fingerprinted(vision: VisionConfig) -> dict:
    """The settings of a tower that memory keys depend on, as `weights.fingerprint` takes them: not where its weights lie."""
    later = [f for f in dataclasses.fields(vision) if f.name not in FINGERPRINTED]
    told = [*FINGERPRINTED, *(f.name for f in later if f.name != "source" and getattr(vision, f.name) != _default(f))]
    return {name: getattr(vision, name) for name in told}


def _default(setting: dataclasses.Field):
    return setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()


@dataclass(frozen=True)
class QFormerConfig:
    """BERT-shaped transformer; `cross_attention_every` 2 means layers 0, 2, 4 ... look at the context."""

    width: int
    layers: int
    heads: int
    intermediate: int
    cross_attention_every: int = 2
    dropout: float = 0.0
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True)
class Votes:
    """Retrieval by votes: the `neighbours` keys nearest to the mean query vote, with exp(`sharpness` x cosine) each."""

    neighbours: int = _at_least(1, 100)
    sharpness: float = _at_least(0, 20.0)


@dataclass(frozen=True)
class MemoryConfig:
    """Retrieval: the first `names` names by `votes`, where they are set, else by the rule of the EVCap release: of the `top_k`
    nearest keys of each query the best `sub_top_k` stay."""

    top_k: int = _at_least(1, 5)
    sub_top_k: int = _at_least(1, 32)
    names: int = _at_least(0, 10)
    votes: Votes | None = None


@dataclass(frozen=True)
class LanguageConfig:
    """The frozen language model and the prompt around the visual vectors.

    The prompt is `before`, the vectors, then `names` (when `names_in_prompt`), then `after`.
    """

    kind: str  # "smollm2-135m" or a folder or hub name: a causal or an encoder-decoder model of transformers
    hidden: int
    before: str
    after: str
    names: str = ""  # holds "{names}"
    names_in_prompt: bool = False
    names_tokens: int = 40  # room for the name tokens; longer lists are cut at a whole name
    stop: str = "\n"  # ends the captions of a causal model
    lora_rank: int = 0
    lora_alpha: float = 32.0
    precision: str = "float32"  # of the frozen weights: float32, bfloat16, float16, 8bit or 4bit


@dataclass(frozen=True)
class DecodingConfig:
    beams: int = 5
    min_length: int = 0
    max_length: int = 32
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0  # of tokens that a caption has already (CTRL, arXiv 1909.05858)
    # weights in the choice among the beams, beside likelihood
    itc_weight: float = 0.0  # of image-text similarity
    phrase_weight: float = 0.0  # of the phrase model
    search: str = "beam"  # or "release", the rule of the EVCap release (evcap/language/release_search.py)


@dataclass(frozen=True)
class RetrievalConfig:
    """When something counts as found in an image of many tiles: above `fast`, `slow` or `both`, which hold for 1,000 tiles,
    plus `slope` x ln(tiles / 1000); above `both` if the best place is above it by `lead`. How they were measured:
    docs/big-images.md."""

    fast: float
    slow: float
    both: float
    slope: float
    lead: float = _at_least(0, 0.0)
    reduce: str = "mean"  # which images stand for a label: "mean" all, "cluster" the largest, "rerank" those nearest its name
    contexts: int = 3  # places that are described for an answer; all are shown


@dataclass(frozen=True)
class RegionConfig:
    """Of evcap/regions. Their prompt is that of `language`, but behind the vectors come `words`, the names, and `after`."""

    views: int = _at_least(1, 3)
    hidden: int = 0  # of the fusion, between its two linear maps; 0 = the width of patch tokens
    inner: int = 0  # channels that the alignment samples; 0 = all
    align: bool = True
    residual: bool = False  # the fusion adds to the region's own view, from nothing on
    qformer: bool = False  # regions have an image Q-Former of their own, as DynRefer trains one
    texts: str = "minilm"  # who reads the texts that heads compare with: "minilm" or "eva-clip"
    text_width: int = 384
    head: QFormerConfig = field(default_factory=lambda: QFormerConfig(256, 2, 4, 1024, dropout=0.1))  # the paper's
    control_vector: bool = False  # a learned vector is added to control words, as in the release with Flan-T5
    begin: bool = True  # whether what a prompt begins with stands before the vectors or behind them
    words: str = "{words}"  # holds "{words}"
    words_tokens: int = _at_least(1, 32)
    names_tokens: int = 40
    after: str = ""
    lora_rank: int = _at_least(0, 0)
    lora_alpha: float = 16.0
    names_as_words: bool = False  # names join the control words; else they reach the language model as those of photos
    tag_threshold: float = 0.7
    decoding: DecodingConfig = field(default_factory=DecodingConfig)  # itc_weight: of the region-text score


@dataclass(frozen=True)
class GeneratorConfig:
    """Who writes the words (evcap.generators), and what it is told beside the image.

    `prompt` stands for images without names, and before `names`, the template of those that have some. None: what the kind
    has by itself (`evcap.generators.options.PROMPTS`). "evcap" has neither, its prompt is the language model's.
    """

    kind: str = "evcap"  # or "blip2", "image-text", "endpoint"
    source: str = ""  # folder, hub name or address; of "blip2" the one of the language model if it is left out
    model: str = ""  # its name at an endpoint
    prompt: str | None = None
    names: str | None = None  # holds "{names}"
    max_length: int = 64  # tokens of a caption; of "image-text" and "endpoint", the others have `decoding`


@dataclass(frozen=True)
class Preset:
    """Everything one model is made of."""

    name: str
    vision: VisionConfig
    image_qformer: QFormerConfig
    name_qformer: QFormerConfig
    language: LanguageConfig
    image_queries: int = 32
    name_queries: int = 8
    patch_positions: bool = False  # learned positions and a LayerNorm on the patch tokens, for towers that have none
    unit_queries: bool = False  # Q is brought to unit length right behind the Q-Former, as in the EVCap release
    text_width: int = 0  # width of the frozen sentence embedder used for contrast; 0 = no text projection
    vocab_size: int = 30522  # BERT word pieces of the name fusion
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    regions: RegionConfig | None = None  # None: it says nothing of regions
    retrieval: RetrievalConfig | None = None  # None: nobody measured it for this preset's towers
    text_tower: str = ""  # folder or hub name of a CLIP that finds phrases in big images; "" = the text projection
    blip2: list[str] = field(default_factory=list)  # where a "blip2-vit" tower and its Q-Former come from
    assets: str | None = None  # folder with trained.safetensors, memory/, phrases.safetensors; relative to the preset file


def preset_path(name_or_path: str | Path) -> Path:
    """The YAML file of a shipped preset name, or the given path itself."""
    shipped = PRESET_FOLDER / f"{name_or_path}.yaml"
    if shipped.exists():
        return shipped
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return path
    known = ", ".join(sorted(p.stem for p in PRESET_FOLDER.glob("*.yaml")))
    raise EvcapError(f"there is no preset '{name_or_path}'. Shipped presets: {known}; or give the path of a YAML file")


def preset_files(name_or_path: str | Path) -> list[Path]:
    """The YAML file of a preset, and those of its `base`, its base's and so on, in that order. Raises EvcapError."""
    return [file for file, _ in _layers(name_or_path)]


def _layers(name_or_path: str | Path) -> list[tuple[Path, dict]]:
    layers, base, file = [], name_or_path, None
    while base is not None:
        if file and not (isinstance(base, str) and base):
            raise EvcapError(f"{file}: base: expected the name or the path of a preset, found {brief(base)}")
        if "\0" in str(base):
            raise EvcapError(f"{brief(str(base))} is no path of a preset")
        found = preset_path(base)
        found = file.parent / found if file and found.parent != PRESET_FOLDER else found
        if any(os.path.realpath(found) == os.path.realpath(other) for other, _ in layers):
            raise EvcapError(f"{file}: base: {brief(base)} is based on this preset itself")
        file, settings = found, read_yaml(found)
        if not isinstance(settings, dict):
            raise EvcapError(f"{file}: expected settings as key: value, found {type(settings).__name__}")
        base = settings.pop("base", None)
        if layers and isinstance(settings.get("assets"), str):  # which is relative to the file that says so
            settings["assets"] = str(file.parent.absolute() / settings["assets"])
        layers.append((file, settings))
    return layers


def _over(beneath: dict, above: dict) -> dict:
    """As `overlaid`; but a tower of another kind or source has none of the sizes beneath, a generator of another kind none
    of the prompts."""
    told = {"vision": ("kind", "source"), "generator": ("kind",)}
    for part, keys in told.items():
        old, new = beneath.get(part), above.get(part)
        if isinstance(old, dict) and isinstance(new, dict) and any(new.get(k, old.get(k)) != old.get(k) for k in keys):
            beneath = {name: value for name, value in beneath.items() if name != part}
    return overlaid(beneath, above)


def load_preset(name_or_path: str | Path) -> Preset:
    """Read a preset by its shipped name ("embedded", "evcap-vicuna-13b") or from a YAML file of your own.

    `base:` in it names another preset, whose settings hold where the file says nothing; a path is relative to the file.
    The sizes of a tower of transformers are read from where it lies. Raises EvcapError with one line.
    """
    layers = _layers(name_or_path)
    preset = from_dict(Preset, reduce(_over, (settings for _, settings in reversed(layers))), str(layers[0][0]))
    vision = preset.vision
    if (vision.kind == "transformers") != bool(vision.source):
        raise EvcapError(
            f"{name_or_path}: vision: `source` names the folder or hub name of kind 'transformers'; set both or neither"
        )
    return dataclasses.replace(preset, vision=measured(vision))


def measured(vision: VisionConfig) -> VisionConfig:
    """The settings of a tower with all its sizes, those of its `source` included. Raises EvcapError as `tower_settings`."""
    if not vision.source:
        return vision
    from evcap.weights.tower_settings import tower_settings  # what other towers do not need

    given = {name: getattr(vision, name) for name in ("source", "image_size", "width", "tokens", "mean", "std")}
    return dataclasses.replace(vision, **tower_settings(**given))


def assets_folder(name_or_path: str | Path, preset: Preset) -> Path:
    """The folder of a preset's own tensors and memory; `name_or_path` is what the preset was read from."""
    return preset_path(name_or_path).parent / (preset.assets or "")


def shipped_memory() -> Path:
    """The memory inside the package, which is only read."""
    return assets_folder("embedded", load_preset("embedded")) / "memory"
