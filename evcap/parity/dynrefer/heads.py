"""The heads and their losses, with gradients."""

from __future__ import annotations

import torch

from evcap.parity.dynrefer.model import RegionParts
from evcap.parity.dynrefer.recording import Output, Recording
from evcap.regions.heads import best_text, tags_above
from evcap.training.region_losses import asymmetric_loss, region_text_loss, two_way_loss

# settings of the asymmetric loss alone: gamma_negative, gamma_positive, clip
ASYMMETRIC = {"gamma41": (4, 1, 0.05), "noclip": (2, 0, 0.0), "gamma0": (0, 0, 0.05)}


def tag(recording: Recording, model: RegionParts) -> dict[str, Output | list]:
    regions = recording["heads.x_v"].clone().requires_grad_()
    logits = model.tag_head(regions, recording["state.clip_embeds"])
    logits.retain_grad()
    loss = tag_loss(recording, logits, recording["tag.targets_two_sets"])
    loss.backward()
    meta = recording.meta
    return {
        "tag.logits": logits,
        "tag.loss_weighted": loss,
        "tag.grad_logits_weighted": logits.grad,
        "tag.grad_x_v_weighted": regions.grad,
        "results.tag_predictions": tags_above(logits, meta["strings"]["tags"], meta["constants"]["tag_threshold"]),
    }


def tag_loss(recording: Recording, logits: torch.Tensor, two_sets: torch.Tensor) -> torch.Tensor:
    """Weighted; a tag holds if it stands in one of the two sets (R,2T)."""
    constants, first = recording.meta["constants"], logits.shape[1]
    settings = constants["asl"]["gamma_neg"], constants["asl"]["gamma_pos"], constants["asl"]["clip"]
    targets = two_sets[:, :first] | two_sets[:, first:]
    return constants["tag_weight"] * asymmetric_loss(logits, targets, *settings, least=recording.meta["eps"]["asl"])


def asl(recording: Recording, model: RegionParts) -> dict[str, Output]:
    release = recording.meta["constants"]["asl"]
    settings = {"release": (release["gamma_neg"], release["gamma_pos"], release["clip"]), **ASYMMETRIC}
    outputs = {}
    for name, values in settings.items():
        logits = recording["asl.logits"].clone().requires_grad_()
        loss = asymmetric_loss(logits, recording["asl.targets"], *values, least=recording.meta["eps"]["asl"])
        loss.backward()
        outputs |= {f"asl.{name}.loss": loss, f"asl.{name}.grad": logits.grad}
    return outputs


def rtc(recording: Recording, model: RegionParts) -> dict[str, Output]:
    head, weight = model.region_text_head, recording.meta["constants"]["rtc_weight"]
    regions, texts = recording["heads.x_v"].clone().requires_grad_(), recording["rtc.text"]
    scored: list[torch.Tensor] = []
    with head.register_forward_hook(lambda module, given, scores: scored.append(scores)):
        loss = weight * region_text_loss(head, regions, texts)
    of_scores, of_regions, scale, bias = torch.autograd.grad(loss, (scored[0], regions, head.log_scale, head.bias))
    attributes = head(regions, recording["state.att_embeds"]).sigmoid()
    return {
        "rtc.similarity": scored[0],
        "rtc.grad_similarity_weighted": of_scores,
        "rtc.loss_weighted": loss,
        "rtc.grad_x_v_weighted": of_regions,
        "rtc.grad_t_weighted": scale,
        "rtc.grad_b_weighted": bias,
        "rtc.attribute_scores": best_text(attributes, recording.meta["strings"]["attribute_text_counts"]),
        "rtc.class_logits": head(regions, recording["state.ov_embeds"]),
        **_two_ranks(recording, model, weight),
    }


def _two_ranks(recording: Recording, model: RegionParts, weight: float) -> dict[str, Output]:
    """What each of two processes finds that hold half of the pairs."""
    everything = recording["heads.x_v"], recording["rtc.text"]
    outputs, matched = {}, torch.eye(len(everything[0]))
    for process, (regions, texts, own) in enumerate(zip(*(each.chunk(2) for each in (*everything, matched)), strict=True)):
        regions = regions.clone().requires_grad_()
        loss = weight * two_way_loss(model.region_text_head, regions, texts, *everything, own.T, own)
        loss.backward()
        outputs[f"rtc.two_ranks.loss_weighted_rank{process}"] = loss
        outputs[f"rtc.two_ranks.grad_x_v_weighted_rank{process}"] = regions.grad
    return outputs
