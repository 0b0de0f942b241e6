"""Images of names drawn by a text-to-image model, each the same again whatever else is drawn beside it.

EVCap (arXiv 2311.15879) adds to its memory five Stable Diffusion images a name, of the prompt "a photo of {name}".
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evcap.datasets.named_images import NamedImage
from evcap.errors import EvcapError
from evcap.files import replacing
from evcap.progress import Progress, silent
from evcap.weights.sources import local_or_hub

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NO_FOLDER = re.compile(r"[%/\\\x00-\x1f]|^\.")  # what cannot stand, or not be seen again, in the name of a folder
SAMPLE = 2**20  # bytes


@dataclass(frozen=True)
class Brush:
    """How images are drawn. steps, guidance: None = the pipeline's own, for a Turbo model 1 and 0."""

    source: str  # folder or hub name of a diffusers pipeline
    template: str = "a photo of {name}"
    count: int = 5  # images a name
    steps: int | None = None
    guidance: float | None = None
    batch: int = 4
    seed: int = 0

    def __post_init__(self):
        if "{name}" not in self.template:
            raise EvcapError(f"the prompt '{self.template}' has no {{name}} in it")


@dataclass(frozen=True)
class Drawing:
    """One image to be drawn; `about` is what its PNG will tell of it."""

    name: str
    path: Path
    prompt: str
    seed: int
    about: dict[str, str]


def plan(names: Iterable[str], folder: Path, brush: Brush) -> list[Drawing]:
    """`brush.count` drawings of each name, as files FOLDER/name/number.png."""
    drawings = []
    model = model_mark(brush.source)
    chosen = {"steps": brush.steps, "guidance": brush.guidance}
    for name in names:
        prompt = brush.template.replace("{name}", name)
        for number in range(brush.count):
            seed = picture_seed(brush.seed, name, number)
            about = {"name": name, "prompt": prompt, "seed": str(seed), "model": model}
            about |= {key: str(value) for key, value in chosen.items() if value is not None}
            drawings.append(Drawing(name, folder / folder_name(name) / f"{number}.png", prompt, seed, about))
    return drawings


def draw(drawings: Sequence[Drawing], brush: Brush, progress: Progress = silent) -> tuple[list[NamedImage], Counter[str]]:
    """Draw what is not there yet; (all images, how many of each name were blanked).

    A readable PNG that tells the same prompt, seed and model (and steps and guidance, where these are given) is kept. One
    that the pipeline's safety checker blanks, or that comes out black, is not written. Raises EvcapError without diffusers
    or when the pipeline does not load.
    """
    batches = [drawings[start : start + brush.batch] for start in range(0, len(drawings), brush.batch)]
    missing = {d.path for d in drawings if not d.about.items() <= told(d.path).items()}
    # a batch of which one is missing is drawn whole: in another company it would round differently
    todo = [batch for batch in batches if any(d.path in missing for d in batch)]
    blanked = Counter()
    if todo:
        pipeline, arguments = open_pipeline(brush)
        there = len(drawings) - sum(map(len, todo))
        with progress(len(drawings), "drawings", done=there) as advance:
            for batch in todo:
                # on the CPU: the same noise whatever the device, and for each image its own, whatever the batch
                generators = [torch.Generator().manual_seed(d.seed) for d in batch]
                drawn = pipeline([d.prompt for d in batch], generator=generators, **arguments)
                flags = getattr(drawn, "nsfw_content_detected", None) or [False] * len(batch)
                for drawing, picture, flag in zip(batch, drawn.images, flags, strict=True):
                    if drawing.path not in missing:
                        continue
                    if flag or picture.getbbox() is None:
                        drawing.path.unlink(missing_ok=True)  # of other settings
                        blanked[drawing.name] += 1
                    else:
                        write_png(picture, drawing.path, drawing.about | _strings(arguments))
                advance(len(batch))
    left = [d for d in drawings if d.path.is_file()]
    source = f"drawn by {Path(brush.source).name}"
    return [NamedImage(d.name, d.path, source, label=f"{d.path.parent.name}/{d.path.name}") for d in left], blanked


def blanked_line(blanked: Counter[str]) -> str:
    """How many drawings of which names were dropped, in one line."""
    names = ", ".join(f"{name} {count}" for name, count in sorted(blanked.items()))
    return f"{blanked.total()} drawings were blanked by the safety checker or came out black, and are left out: {names}"


def picture_seed(seed: int, name: str, number: int) -> int:
    """63 bits that depend on nothing but the base seed, the name and the number of the image."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {name}".encode()).digest()[:8], "big") >> 1


def folder_name(name: str) -> str:
    """The name as a folder's: characters that cannot stand there become %2F and so on, which `read_named_folders` undoes."""
    return NO_FOLDER.sub(lambda match: f"%{ord(match[0]):02X}", name)


def told(path: Path) -> dict[str, str]:
    """What a PNG tells of itself; nothing if it is missing or damaged."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            about = {key: str(value) for key, value in image.info.items()}
            image.verify()
            return about
    except Exception:  # Pillow raises many kinds for damaged data
        return {}


def write_png(picture: Image.Image, path: Path, about: dict[str, str]) -> None:
    """Write a PNG with texts, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = PngInfo()
    for key, value in about.items():
        texts.add_itxt(key, value)
    with replacing(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=texts)


def _strings(arguments: dict) -> dict[str, str]:
    return {"steps": str(arguments["num_inference_steps"]), "guidance": str(arguments["guidance_scale"])}


def model_mark(source: str) -> str:
    """Hub name, or folder name with a short hash of its files: of sizes, and of a MiB from the middle of each.

    Other weights differ there; to hash all of them would take a minute at each start.
    """
    folder = local_or_hub(source)
    if isinstance(folder, str):
        return folder
    if not folder.is_dir():
        raise EvcapError(f"{folder} is no folder of a pipeline")
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(0, (size - SAMPLE) // 2))
            digest.update(f"{path.relative_to(folder)} {size}".encode(errors="surrogateescape") + file.read(SAMPLE))
    return f"{folder.resolve().name} {digest.hexdigest()[:12]}"


def open_pipeline(brush: Brush) -> tuple[DiffusionPipeline, dict]:
    """A text-to-image pipeline, in float16 on a GPU, else in float32, and the arguments to call it with."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # of image processors that drawing does not use
    logging.disable_progress_bar()
    try:
        import diffusers
    except ImportError as error:
        raise EvcapError(f"drawing needs diffusers ({error}): pip install -e '.[synth]'") from None
    gpu = torch.cuda.is_available()
    folder = Path(brush.source)
    weights = [path.name for path in folder.glob("unet/*.safetensors")]
    variant = "fp16" if weights and all(".fp16." in name for name in weights) else None  # a folder of those files alone
    diffusers.utils.logging.disable_progress_bar()
    try:
        # use_safetensors: pickled weights could run code
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
            brush.source, dtype=torch.float16 if gpu else torch.float32, use_safetensors=True, variant=variant
        )
    except Exception as error:  # a folder or repository of anybody's making
        reason = " ".join(str(error).split())
        raise EvcapError(f"{brush.source} is no text-to-image pipeline with safetensors weights ({reason})") from None
    pipeline.set_progress_bar_config(disable=True)
    turbo = "turbo" in folder.name.lower()  # distilled to one step without guidance, which their folders do not tell
    usual = inspect.signature(pipeline.__call__).parameters
    steps = brush.steps or (1 if turbo else usual["num_inference_steps"].default)
    guidance = brush.guidance
    if guidance is None:
        guidance = 0.0 if turbo else usual["guidance_scale"].default
    return pipeline.to("cuda" if gpu else "cpu"), {"num_inference_steps": steps, "guidance_scale": guidance}
