"""What the training loop takes of a region model: all that is trained, and nothing of the spine."""

import dataclasses

import torch
from tiny_regions import REGIONS, tiny_spine

from evcap.regions.model import RegionModel
from evcap.training.loop import Learner


def test_every_trained_tensor_is_among_those_that_are_updated_and_exchanged():
    spine = tiny_spine(regions=dataclasses.replace(REGIONS, control_vector=True, qformer=True))
    model = RegionModel(spine, spine.language)
    seen = {id(parameter) for parameter in Learner(model).parameters()}
    assert "control_embedding" in model.trained()
    parameters = dict(model.named_parameters())
    assert all(id(parameters[name]) in seen for name in model.trained())
    of_spine = [p for name, p in spine.named_parameters() if not name.startswith("language.")]
    assert not any(id(parameter) in seen for parameter in of_spine)
    assert len(list(Learner(model).parameters())) == len(seen)  # none twice
    with torch.no_grad():
        model.control_embedding.add_(1)
    assert any((parameter == 1).all() for parameter in Learner(model).own.values())
