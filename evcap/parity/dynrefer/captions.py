"""Both language models of the release over the region features: what they are given, their loss, what they say."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from evcap.language.model import IGNORED
from evcap.parity.dynrefer.model import RegionParts
from evcap.parity.dynrefer.recording import Output, Recording
from evcap.weights.blip2 import check_shapes


def t5(recording: Recording) -> T5ForConditionalGeneration:
    recorded = recording.meta["t5_config"]
    config = T5Config(**recorded)
    config.dense_act_fn = recorded["dense_act_fn"]  # T5Config derives another one
    llm = T5ForConditionalGeneration(config)
    if not recorded["tie_word_embeddings"]:  # transformers 5 joins them whatever the settings say
        llm.lm_head.weight = nn.Parameter(llm.lm_head.weight.detach().clone())
    return _filled(llm, "t5_model.", recording)


def vicuna(recording: Recording) -> LlamaForCausalLM:
    return _filled(LlamaForCausalLM(LlamaConfig(**recording.meta["llama_config"])), "llm_model.", recording)


def _filled(model: PreTrainedModel, prefix: str, recording: Recording) -> PreTrainedModel:
    """A language model with the recording's weights, which only reads."""
    state = {name.removeprefix(prefix): tensor for name, tensor in recording.state.items() if name.startswith(prefix)}
    names = dict(model.named_parameters())
    check_shapes(state, names, {}, str(recording.state_file))
    model.load_state_dict({name: state[name] for name in names}, strict=False)
    return model.eval().requires_grad_(False)


def encoder_input(
    model: RegionParts, llm: nn.Module, regions: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What T5 reads: the projected query features, then the control words, each with the learned vector, padding too."""
    visual = model.projection(regions)
    words = llm.get_input_embeddings()(ids) + model.control_embedding
    return torch.cat([visual, words], dim=1), torch.cat([mask.new_ones(visual.shape[:2]), mask], dim=1)


def t5_outputs(
    llm: T5ForConditionalGeneration, embeddings: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and mean loss of the labels."""
    output = llm(
        inputs_embeds=embeddings, attention_mask=mask, labels=labels, decoder_attention_mask=(labels != IGNORED).long()
    )
    return output.logits, output.loss


@torch.no_grad()
def generated(llm: PreTrainedModel, embeddings: torch.Tensor, mask: torch.Tensor, meta: dict) -> tuple[torch.Tensor, ...]:
    """The best beam's ids and exp of its score, with the recorded settings."""
    ends = {name: getattr(llm.config, name, None) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    ends["decoder_start_token_id"] = getattr(llm.config, "decoder_start_token_id", None)
    settings = GenerationConfig(**meta["generation"], **ends, return_dict_in_generate=True, output_scores=True)
    found = llm.generate(inputs_embeds=embeddings, attention_mask=mask, generation_config=settings)
    return found.sequences, found.sequences_scores.exp()


def llm_t5(recording: Recording, model: RegionParts) -> dict[str, Output]:
    llm = t5(recording)
    controls = recording["llm_t5.control_ids"], recording["llm_t5.control_mask"]
    embeddings, mask = encoder_input(model, llm, recording["heads.x_v"], *controls)
    logits, loss = t5_outputs(llm, embeddings, mask, recording["llm_t5.labels"])
    ids, score = generated(llm, embeddings, mask, recording.meta)
    outputs = {"inputs_embeds": embeddings, "attention_mask": mask, "logits": logits, "loss": loss}
    outputs |= {"generated": through_end(ids, llm, recording["llm_t5.generated"]), "generated_score": score}
    return {f"llm_t5.{name}": output for name, output in outputs.items()}


def through_end(ids: torch.Tensor, llm: PreTrainedModel, recorded: torch.Tensor) -> torch.Tensor:
    """Generated ids as wide as the recorded ones; behind the end id, where filler lies, what was recorded."""
    width = recorded.shape[1]
    ids = nn.functional.pad(ids[:, :width], (0, max(0, width - ids.shape[1])), value=llm.config.pad_token_id or 0)
    ended = (ids == llm.config.eos_token_id).cumsum(1)
    behind = (ended - (ids == llm.config.eos_token_id).long()) > 0
    return torch.where(behind, recorded, ids)


def llm_vicuna(recording: Recording, model: RegionParts) -> dict[str, Output]:
    llm, state = vicuna(recording), recording.state
    visual = nn.functional.linear(recording["heads.x_v"], state["llm_proj.weight"], state["llm_proj.bias"])
    controls, captions = recording["llm_vicuna.control_ids"], recording["llm_vicuna.caption_ids"]
    ids, mask, labels = _rows(controls, captions)
    embeddings = torch.cat([visual, llm.get_input_embeddings()(ids)], dim=1)
    before = visual.shape[1]
    mask = torch.cat([mask.new_ones(len(mask), before), mask], dim=1)
    labels = torch.cat([labels.new_full((len(labels), before), IGNORED), labels], dim=1)
    output = llm(inputs_embeds=embeddings, attention_mask=mask, labels=labels)
    words, words_mask = _left_padded(controls)
    prompt = torch.cat([visual, llm.get_input_embeddings()(words)], dim=1)
    prompt_mask = torch.cat([words_mask.new_ones(len(words), before), words_mask], dim=1)
    said, score = generated(llm, prompt, prompt_mask, recording.meta)
    said = said.masked_fill(said == 0, 2)  # as the release does
    outputs = {
        "inputs_embeds": embeddings,
        "attention_mask": mask,
        "labels": labels,
        "logits": output.logits,
        "loss": output.loss,
        "gen_inputs_embeds": prompt,
        "gen_attention_mask": prompt_mask,
        "generated": through_end(said, llm, recording["llm_vicuna.generated"]),
        "generated_score": score,
    }
    return {f"llm_vicuna.{name}": output for name, output in outputs.items()}


def _rows(controls: torch.Tensor, captions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels of control words, then the caption without its begin id, then padding; ids 0 are padding."""
    width = controls.shape[1] + captions.shape[1] - 1
    ids = controls.new_zeros(len(controls), width)
    labels = torch.full_like(ids, IGNORED)
    for row, (control, caption) in enumerate(zip(controls, captions, strict=True)):
        control, caption = control[control != 0], caption[caption != 0][1:]
        end = len(control) + len(caption)
        ids[row, :end] = torch.cat([control, caption])
        labels[row, len(control) : end] = caption
    return ids, (ids != 0).long(), labels


def _left_padded(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    real = ids != 0
    order = real.long().argsort(dim=1, stable=True)
    return ids.gather(1, order), real.gather(1, order).long()
