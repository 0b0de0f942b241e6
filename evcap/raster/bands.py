"""Which bands of a raster become red, green and blue, and what their values say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evcap.errors import EvcapError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

NAMES = ("red", "green", "blue")


@dataclass(frozen=True)
class Bands:
    """numbers: one band (grey) or three (red, green, blue), counted from 1. palette: (n,4) uint8, red, green, blue and alpha
    of each index, if the band holds indices. masks: the bands whose masks tell what is valid, which is what one of them has;
    none if all is. notes: what was chosen, where there was a choice."""

    numbers: tuple[int, ...]
    palette: np.ndarray | None
    masks: tuple[int, ...]
    notes: tuple[str, ...]


def choose_bands(dataset: DatasetReader, wanted: Sequence[int] | None) -> Bands:
    """`wanted` if given; else the bands that colour interpretation names red, green and blue, else those that are described
    so; else the first three, or the first as grey where there are fewer. An alpha band is none of them.

    Raises EvcapError for bands that the file does not have, and for complex numbers.
    """
    roles = [role.name for role in dataset.colorinterp]
    alpha = roles.index("alpha") + 1 if "alpha" in roles else None
    colours = [number for number in range(1, dataset.count + 1) if number != alpha] or [1]
    notes = []
    if wanted is not None:
        numbers = _checked(wanted, dataset.count)
    elif named := _named(roles) or _named([str(text).strip().lower() for text in dataset.descriptions]):
        numbers = named
    else:
        numbers = tuple(colours[:3]) if len(colours) >= 3 else (colours[0],)
        if len(colours) not in (1, 3):
            shown = "band 1 is shown as grey" if len(numbers) == 1 else f"bands {_list(numbers)} are taken as such"
            notes.append(f"no band is named red, green or blue: {shown}, unless --bands names others")
    unused = [number for number in colours if number not in numbers]
    if unused and wanted is None:
        infrared = ", which is no alpha band (near infrared?)," if unused == [4] else ""
        notes.append(f"band{'s' * (len(unused) > 1)} {_list(unused)}{infrared} not used")
    if alpha and alpha not in numbers:
        notes.append(f"band {alpha} is alpha: where it is 0, nothing is valid")
    if any(dataset.dtypes[number - 1].startswith("complex") for number in numbers):
        raise EvcapError("its numbers are complex; convert it to amplitudes first (gdal_calc.py, or a VRT with 'mod')")
    if len({dataset.dtypes[number - 1] for number in numbers}) > 1:
        raise EvcapError(f"bands {_list(numbers)} are of different types; choose others with --bands")
    palette = _palette(dataset, numbers[0]) if len(numbers) == 1 and roles[numbers[0] - 1] == "palette" else None
    return Bands(numbers, palette, _masks(dataset, numbers, alpha), tuple(notes))


def _masks(dataset: DatasetReader, numbers: tuple[int, ...], alpha: int | None) -> tuple[int, ...]:
    """An alpha band that is used as a colour is no mask: somebody took near infrared for one, as GDAL does when it writes."""
    flags = {flag.name for number in numbers for flag in dataset.mask_flag_enums[number - 1]}
    if flags == {"all_valid"} or alpha in numbers:
        return ()
    return numbers if "nodata" in flags else numbers[:1]  # other masks are the whole file's


def _checked(wanted: Sequence[int], count: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in wanted)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in (1, 3):
        raise EvcapError(f"bands must be one number or three, for red, green and blue, not {wanted}")
    if not all(1 <= number <= count for number in numbers):
        raise EvcapError(f"it has no bands {_list(numbers)}, but {count}, counted from 1")
    return numbers


def _named(names: list[str]) -> tuple[int, ...] | None:
    return tuple(names.index(name) + 1 for name in NAMES) if set(NAMES) <= set(names) else None


def _palette(dataset: DatasetReader, number: int) -> np.ndarray:
    table = dataset.colormap(number)
    palette = np.zeros((max(max(table) + 1, 256 if dataset.dtypes[number - 1] == "uint8" else 65536), 4), np.uint8)
    palette[list(table)] = list(table.values())
    return palette


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
