"""evcap describes images with names from an external visual memory that anyone can edit."""

from __future__ import annotations

__version__ = "0.1.0"


def load(preset: str = "embedded", memory=None, device: str | None = None, generator=None):
    """Open a captioner: `evcap.load().caption("photo.jpg")`.

    preset: a shipped preset's name or the path of a YAML file. memory: a folder or a VisualNameMemory in place of the
    shipped one. device: "cpu", "cuda", "cuda:1"; by default a CUDA GPU where there is one.
    generator: who writes, in place of the preset's: "evcap", the folder or hub name of an image-text-to-text model, or an
    evcap.config.GeneratorConfig.
    Raises evcap.errors.EvcapError with one line when a part is missing or does not fit.
    """
    from evcap.captioner import Captioner  # torch is imported here, not by `import evcap`

    return Captioner.load(preset, memory, device=device, generator=generator)
