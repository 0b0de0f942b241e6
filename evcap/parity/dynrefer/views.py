"""Boxes of views, regions from polygons and masks, the hash and the choice it makes, crops."""

from __future__ import annotations

import numpy as np
from PIL import Image

from evcap.images.opening import to_tensor
from evcap.parity.dynrefer.recording import Output, Recording
from evcap.regions.perceptual_hash import grey_of, low_frequencies, perceptual_hashes
from evcap.regions.views import (
    boxes_in_views,
    crop_boxes,
    crop_views,
    mask_region,
    polygon_region,
    release_ratios,
    view_boxes,
    view_scores,
)

BOXES_AT = 224  # pixels of the views that boxes.* and boxes_outside.* lie in, whatever the recording's own


def boxes(recording: Recording) -> dict[str, Output]:
    sizes, regions = recording.array("boxes.image_size"), recording.array("boxes.region")
    rows = []
    for (width, height), region in zip(sizes.tolist(), regions, strict=True):
        views = view_boxes(region[None], recording.array("boxes.t"), width, height)
        crops = crop_boxes(views, width, height)
        rows.append((views, crops, boxes_in_views(crops[:, 0], crops, BOXES_AT)))
    views, crops, inside = map(np.concatenate, zip(*rows, strict=True))
    return {"boxes.view": views, "boxes.view_int": crops, "boxes.in_view": inside}


def boxes_outside(recording: Recording) -> dict[str, Output]:
    """View boxes that leave the image; the first row is the regions' own."""
    crops = crop_boxes(recording.array("boxes_outside.view"), *recording.array("boxes_outside.image_size").tolist())
    inside = boxes_in_views(crops[0], crops.transpose(1, 0, 2), BOXES_AT)
    return {"boxes_outside.view_int": crops, "boxes_outside.in_view": inside.transpose(1, 0, 2)}


def region(recording: Recording) -> dict[str, Output]:
    polygons = recording.meta["strings"]["region_polygons"]
    return {
        "region.polygon_boxes": np.stack([polygon_region(each) for each in polygons]),
        "region.mask_boxes": np.stack([mask_region(mask) for mask in recording.array("region.masks")]),
    }


def hashes(recording: Recording) -> dict[str, Output]:
    """Of every image: grey levels, frequencies, bits, scores, and which views each number of views takes."""
    outputs: dict[str, Output] = {}
    for image in dict.fromkeys(name.rsplit(".", 1)[0] for name in recording.below("hash")):
        pixels, regions = recording.array(f"{image}.image"), recording.array(f"{image}.regions")
        height, width = pixels.shape[:2]
        grey = grey_of(pixels)
        crops = crop_boxes(view_boxes(regions, np.arange(11) / 10, width, height), width, height).reshape(-1, 4)
        count = (len(regions), -1)
        scores = view_scores(Image.fromarray(pixels), regions)
        outputs |= {
            f"{image}.grey": grey,
            f"{image}.dct": low_frequencies(grey, crops).reshape(*count, 8, 8),
            f"{image}.bits": perceptual_hashes(grey, crops).reshape(*count, 64),
            f"{image}.scores": scores,
        }
        for name in recording.below(image):
            chosen = name.removeprefix(f"{image}.")
            if chosen.startswith(("ratios_v", "views_v")):
                ratios = release_ratios(scores, int(chosen.split("_v")[1]))
                outputs[name] = ratios if chosen.startswith("ratios") else view_boxes(regions, ratios, width, height)
    return outputs


def crops(recording: Recording) -> dict[str, Output]:
    sizes, constants = recording.meta["sizes"], recording.meta["constants"]
    count, views, size = sizes["n_regions"], sizes["num_views"], sizes["image"]
    image = Image.fromarray(recording.array("hash.img0.image"))
    regions = recording.array("hash.img0.regions")[:count]
    ratios = release_ratios(view_scores(image, regions), views)
    pixels = crop_boxes(view_boxes(regions, ratios, *image.size), *image.size)
    tensor = to_tensor(crop_views(image, pixels, size), size, constants["pixel_mean"], constants["pixel_std"])
    outputs = {"views.images": tensor.unflatten(0, (count, views)), "views.boxes": boxes_in_views(pixels[:, 0], pixels, size)}
    return {name: output for name, output in outputs.items() if name in recording.tensors}
