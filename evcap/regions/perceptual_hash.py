"""A perceptual hash of many crops of one image: which of its lowest frequencies are above their mean, 64 bits each."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 224  # of the square that a crop is resized to
BLOCK = 8  # lowest frequencies each way, the constant one included
AT_ONCE = 16  # crops; 25 MB


def grey_levels(image: Image.Image) -> np.ndarray:
    """Grey (H,W) uint8 of an image, rounded as OpenCV does; Pillow's own weights differ in the last bit."""
    return grey_of(np.asarray(image.convert("RGB")))


def grey_of(pixels: np.ndarray) -> np.ndarray:
    """The same of RGB (H,W,3) uint8."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    return ((9798 * red + 19235 * green + 3735 * blue + 16384) >> 15).astype(np.uint8)


def perceptual_hashes(grey: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Grey (H,W) uint8, crops (N,4) int64 within it, none empty -> bits (N,64) bool, by rows of frequencies."""
    frequencies = low_frequencies(grey, boxes).reshape(-1, BLOCK * BLOCK)
    return frequencies > frequencies.mean(axis=1, keepdims=True)


def low_frequencies(grey: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The lowest 8 x 8 of the orthonormal DCT-II of each crop after a bilinear resize to 224 x 224, (N,8,8) float32.

    Both are linear and work on rows and columns apart, so that they become one product from each side of the pixels that the
    resize reads; the cost does not depend on the size of the crop. No antialiasing. float64 inside: sums of 50,000 values.
    """
    unique, of = np.unique(boxes, axis=0, return_inverse=True)  # all regions share the whole image
    found = np.zeros((len(unique), BLOCK, BLOCK), np.float32)
    for start in range(0, len(unique), AT_ONCE):
        part = unique[start : start + AT_ONCE]
        columns, across = _taps(part[:, 0], part[:, 2])
        rows, down = _taps(part[:, 1], part[:, 3])
        pixels = grey[rows[:, :, None], columns[:, None, :]]
        found[start : start + AT_ONCE] = down @ pixels @ across.transpose(0, 2, 1)
    return found[of.reshape(-1)]


def _taps(first: np.ndarray, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of one axis of N crops: the places (N,448) that the resize reads, and what they weigh in each frequency (N,8,448)."""
    centres = (np.arange(SIDE) + 0.5) * ((behind - first) / SIDE)[:, None] - 0.5
    below = np.floor(centres)
    share = (centres - below)[:, None]
    places = np.concatenate([below, below + 1], axis=1).astype(np.int64) + first[:, None]
    basis = _cosines()
    weights = np.concatenate([basis * (1 - share), basis * share], axis=2)
    return np.clip(places, first[:, None], behind[:, None] - 1), weights


def _cosines() -> np.ndarray:
    """The first 8 rows (8,224) of the orthonormal DCT-II."""
    angles = np.pi * np.outer(np.arange(BLOCK), 2 * np.arange(SIDE) + 1) / (2 * SIDE)
    basis = np.cos(angles) * (2 / SIDE) ** 0.5
    basis[0] /= 2**0.5
    return basis
