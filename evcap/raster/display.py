"""How a raster's numbers are shown as colours, where somebody says so."""

from __future__ import annotations

from dataclasses import dataclass

from evcap.errors import EvcapError


@dataclass(frozen=True)
class Display:
    """bands: which one is grey, or which three are red, green and blue, counted from 1. stretch: the percentiles of each
    band's valid values, 0 to 100, that become black and white. None: as `Raster` chooses."""

    bands: tuple[int, ...] | None = None
    stretch: tuple[float, float] | None = None

    @classmethod
    def read(cls, bands: str | None, stretch: str | None) -> Display:
        """From the words of the command line, "3,2,1" and "2,98". Raises EvcapError for what is neither."""
        return cls(_bands(bands) if bands is not None else None, _stretch(stretch) if stretch is not None else None)


DEFAULT = Display()


def _bands(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or min(numbers) < 1:
        raise EvcapError(f"--bands {text}: give one number, for grey, or three, as in 3,2,1 for red, green and blue")
    return numbers


def _stretch(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 100:
        raise EvcapError(f"--stretch {text}: give two percentiles, as in 2,98")
    return low, high
