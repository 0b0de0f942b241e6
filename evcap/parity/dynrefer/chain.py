"""The whole chain, from crops to losses with their gradients, and from crops to tags, scores and captions."""

from __future__ import annotations

import torch

from evcap.parity.dynrefer.captions import encoder_input, generated, t5, t5_outputs, through_end
from evcap.parity.dynrefer.features import region_features
from evcap.parity.dynrefer.heads import tag_loss
from evcap.parity.dynrefer.model import RegionParts
from evcap.parity.dynrefer.recording import Output, Recording
from evcap.regions.heads import best_text, tags_above
from evcap.training.region_losses import region_text_loss
from evcap.weights.dynrefer import our_name


def train(recording: Recording, model: RegionParts) -> dict[str, Output]:
    model.zero_grad()
    regions, llm = region_features(recording, model), t5(recording)
    controls = recording["train.control_ids"], recording["train.control_mask"]
    _, caption = t5_outputs(llm, *encoder_input(model, llm, regions, *controls), recording["train.labels"])
    tags = tag_loss(recording, model.tag_head(regions, recording["state.clip_embeds"]), recording["train.tags_two_sets"])
    weight = recording.meta["constants"]["rtc_weight"]
    texts = weight * region_text_loss(model.region_text_head, regions, recording["train.text"])
    loss = caption + tags + texts
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {name: parameters[our_name(name.removeprefix("train.grad."))].grad for name in recording.below("train.grad")}
    return {
        "train.loss_llm": caption,
        "train.loss_tag": tags,
        "train.loss_att": texts,
        "train.loss": loss,
        **gradients,
    }


@torch.no_grad()
def evaluation(recording: Recording, model: RegionParts) -> dict[str, Output]:
    regions, llm, meta = region_features(recording, model), t5(recording), recording.meta
    logits = model.tag_head(regions, recording["state.clip_embeds"])
    attributes = model.region_text_head(regions, recording["state.att_embeds"]).sigmoid()
    controls = recording["eval.control_ids"], recording["eval.control_mask"]
    ids, score = generated(llm, *encoder_input(model, llm, regions, *controls), meta)
    return {
        "eval.tag_logits": logits,
        "results.eval_tags": tags_above(logits, meta["strings"]["tags"], meta["constants"]["tag_threshold"]),
        "eval.attribute_scores": best_text(attributes, meta["strings"]["attribute_text_counts"]),
        "eval.class_logits": model.region_text_head(regions, recording["state.ov_embeds"]),
        "eval.generated": through_end(ids, llm, recording["eval.generated"]),
        "eval.caption_score": score,
    }
