"""BLIP-2 as published (arXiv 2301.12597): its own projection of Q into its own OPT or Flan-T5, names as text behind it.

Without names and prompt it says what transformers' Blip2ForConditionalGeneration.generate says for the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch
from torch import nn

from evcap.config import DecodingConfig, GeneratorConfig, Preset
from evcap.errors import EvcapError
from evcap.generators.generator import Seen, prompt_for
from evcap.runtime import tower_dtype
from evcap.weights.checkpoints import read_tensors
from evcap.weights.sources import local_or_hub, opened

PROJECTION = "language_projection."
BEHIND_IMAGE = {r"^language_model\.": ""}  # of a checkpoint's names, those of its language model


class Blip2Generator:
    """Projection, language model and tokenizer of a folder or hub repository in transformers' format.

    Half precision off the CPU, float32 on it, as `runtime.tower_dtype` decides. Raises EvcapError for what is no BLIP-2, or
    one of other sizes than the preset.
    """

    side = 0

    def __init__(self, config: GeneratorConfig, preset: Preset, device: torch.device):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

        self._config, self._device, self._lock = config, device, Lock()
        self.source = local_or_hub(config.source or preset.language.kind)
        dtype = tower_dtype(True, device)
        with opened(f"BLIP-2 '{self.source}'"):
            whole = AutoConfig.from_pretrained(self.source, trust_remote_code=False)
            self._check(whole, preset)
            text = whole.text_config
            self._continues = bool(whole.use_decoder_only_language_model)  # OPT; T5 writes behind a text it has read
            kind = AutoModelForCausalLM if self._continues else AutoModelForSeq2SeqLM
            settings = {} if device.type == "cpu" else {"device_map": {"": device}}
            model, found = kind.from_pretrained(
                self.source, config=text, key_mapping=BEHIND_IMAGE, dtype=dtype, output_loading_info=True, **settings
            )
            self._tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
        if found["missing_keys"]:
            raise EvcapError(f"BLIP-2 '{self.source}' lacks tensors of its language model: {min(found['missing_keys'])}")
        model.generation_config = GenerationConfig.from_model_config(text)  # the folder's own is that of the whole
        self._model = model.eval().requires_grad_(False)
        self._projection = self._read_projection(preset.image_qformer.width, text.hidden_size).to(device, dtype)
        self._image_token = whole.image_token_index if whole.image_token_index is not None else text.pad_token_id
        self._first = text.bos_token_id

    def _check(self, whole, preset: Preset) -> None:
        if whole.model_type != "blip-2":
            raise EvcapError(f"'{self.source}' is no BLIP-2 but '{whole.model_type}'; use it with --generator {self.source}")
        sizes = (whole.num_query_tokens, whole.qformer_config.hidden_size, whole.text_config.hidden_size)
        wanted = (preset.image_queries, preset.image_qformer.width, preset.language.hidden)
        for what, size, want in zip(("image_queries", "image_qformer.width", "language.hidden"), sizes, wanted, strict=True):
            if size != want:
                raise EvcapError(f"BLIP-2 '{self.source}' has {size} where the preset says {what}: {want}")

    def _read_projection(self, width: int, hidden: int) -> nn.Linear:
        tensors, _ = read_tensors(self.source, lambda name: name.startswith(PROJECTION))
        linear = nn.Linear(width, hidden)
        try:
            linear.load_state_dict({name.removeprefix(PROJECTION): tensor for name, tensor in tensors.items()})
        except RuntimeError:
            raise EvcapError(f"'{self.source}' has no whole {PROJECTION}weight and bias of {hidden} x {width}") from None
        return linear.requires_grad_(False)

    def captions(self, seen: Seen, num_captions: int, decoding: DecodingConfig) -> list[list[str]]:
        prompts = [prompt_for(self._config, names) for names in seen.names]
        texts = self._write(seen.queries, prompts, num_captions, decoding)
        return [texts[start : start + num_captions] for start in range(0, len(texts), num_captions)]

    def say(self, queries: torch.Tensor, text: str, new_tokens: int) -> str:
        """The likeliest continuation of, or answer to, a text beside one image (Q (32,W)), word after word."""
        return self._write(queries[None], [text], 1, DecodingConfig(beams=1, max_length=new_tokens))[0]

    @torch.inference_mode()
    def scores(self, queries: torch.Tensor, text: str, answers: Sequence[str]) -> list[float]:
        """Mean log-probability of the tokens of each answer behind a text beside one image (Q (32,W))."""
        prompt, scores = self._embedded(queries[None], [text]), []
        with self._lock:
            for answer in answers:
                said = self._tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self._device)
                scores.append(self._answer_logits(prompt, said).float().log_softmax(-1).gather(1, said.mT).mean().item())
        return scores

    def _answer_logits(self, prompt: dict, said: torch.Tensor) -> torch.Tensor:
        """What is expected at each token (1,n) of an answer: (n,V)."""
        inputs, mask = prompt["inputs_embeds"], prompt["attention_mask"]
        if not self._continues:
            return self._model(inputs_embeds=inputs, attention_mask=mask, labels=said).logits[0]
        joined = torch.cat([inputs, self._model.get_input_embeddings()(said)], dim=1)
        mask = torch.cat([mask, torch.ones_like(said)], dim=1)
        return self._model(inputs_embeds=joined, attention_mask=mask).logits[0, -said.shape[1] - 1 : -1]

    @torch.inference_mode()
    def _write(self, queries: torch.Tensor, prompts: Sequence[str], count: int, decoding: DecodingConfig) -> list[str]:
        """`count` texts for each of B images (Q (B,32,W)), one image after the other."""
        beams = max(decoding.beams, count)
        ways = {"num_beams": beams, "num_return_sequences": count, "max_new_tokens": decoding.max_length, "do_sample": False}
        ways |= {"min_new_tokens": decoding.min_length} if decoding.min_length else {}
        ways |= {"length_penalty": decoding.length_penalty} if beams > 1 else {}
        inputs = self._embedded(queries, prompts)
        if not self._continues:
            del inputs["input_ids"]
        with self._lock:
            found = self._model.generate(**inputs, **ways)
        if self._continues:
            found = found[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._tokenizer.batch_decode(found, skip_special_tokens=True)]

    def _embedded(self, queries: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Projected Q and then the prompts' tokens, padded before the image: positions are counted from what is not padding."""
        rows = [self._tokenizer(text)["input_ids"] if text else [self._first] for text in prompts]
        count, width = queries.shape[1], max(map(len, rows))
        filler = self._tokenizer.pad_token_id or 0
        full = [[filler] * (width - len(row)) + [self._image_token] * count + row for row in rows]
        ids = torch.tensor(full, device=self._device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * (count + len(row)) for row in rows], device=self._device)
        embeddings = self._model.get_input_embeddings()(ids)
        vectors = self._projection(queries.to(self._device, self._projection.weight.dtype))
        for place, row in enumerate(rows):
            embeddings[place, width - len(row) :][:count] = vectors[place]
        return {"inputs_embeds": embeddings, "attention_mask": mask, "input_ids": ids}
