"""From a preset to a model: what does not go together gets one line."""

import dataclasses

import pytest

import evcap
from evcap.config import load_preset
from evcap.errors import EvcapError
from evcap.memory.memory import VisualNameMemory
from evcap.model.build import build_model


def test_a_language_model_that_cannot_be_had():
    with pytest.raises(EvcapError, match="language model 'lmsys/vicuna-13b-v1.3' cannot be opened: ") as caught:
        build_model(load_preset("evcap-vicuna-13b"), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"heads": 5}, {"width": 390}])
def test_sizes_that_do_not_go_together(change):
    preset = load_preset("embedded")
    preset = dataclasses.replace(preset, name_qformer=dataclasses.replace(preset.name_qformer, **change))
    with pytest.raises(EvcapError, match="preset 'embedded' describes no model: .") as caught:
        build_model(preset, None)
    assert "\n" not in str(caught.value)


def test_a_memory_object_of_another_encoder_is_refused():
    with pytest.raises(EvcapError, match="another encoder"):
        evcap.load(memory=VisualNameMemory.empty(384, "other"))
