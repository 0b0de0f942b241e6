"""Any image-text-to-text model of transformers that chats: Qwen-VL, InternVL, LLaVA, SmolVLM and their like."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from threading import Lock

import torch

from evcap.config import DecodingConfig, GeneratorConfig
from evcap.errors import EvcapError
from evcap.generators.generator import Part, Seen, prompt_for
from evcap.generators.options import CHAT_SIDE
from evcap.runtime import language_dtype
from evcap.weights.sources import local_or_hub, opened


class ImageTextGenerator:
    """A ChatGenerator: a folder or hub repository that AutoModelForImageTextToText and AutoProcessor open.

    It computes in the half precision that the device has, on CPUs without one in float32.
    Raises EvcapError for a model that cannot be opened, or was not taught to chat.
    """

    side = CHAT_SIDE

    def __init__(self, config: GeneratorConfig, device: torch.device):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._config, self._device, self._lock = config, device, Lock()
        self.source = local_or_hub(config.source)
        settings = {} if device.type == "cpu" else {"device_map": {"": device}}
        with opened(f"image-text model '{self.source}'"):
            self._processor = AutoProcessor.from_pretrained(self.source, trust_remote_code=False)
            dtype = language_dtype("bfloat16", device)
            settings |= {"dtype": dtype, "trust_remote_code": False}
            model = AutoModelForImageTextToText.from_pretrained(self.source, **settings)
        if not getattr(self._processor, "chat_template", None):
            raise EvcapError(f"'{self.source}' has no chat template: a model that was taught to chat is needed")
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = self._processor.tokenizer
        newer = "processor_kwargs" in signature(self._processor.apply_chat_template).parameters  # of transformers 5
        self._padded = {"processor_kwargs": {"padding": True}} if newer else {"padding": True}
        self._tokenizer.padding_side = "left"  # so that all rows go on behind their last token
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def captions(self, seen: Seen, num_captions: int, decoding: DecodingConfig) -> list[list[str]]:
        told = [prompt_for(self._config, names) for names in seen.names]
        texts = self._write(list(map(list, zip(seen.images, told, strict=True))), num_captions, decoding)
        return [texts[start : start + num_captions] for start in range(0, len(texts), num_captions)]

    def reply(self, parts: Sequence[Part], new_tokens: int) -> str:
        return self._write([parts], 1, DecodingConfig(beams=1, max_length=new_tokens))[0]

    @torch.inference_mode()
    def pick(self, parts: Sequence[Part], choices: int) -> int:
        """The letter that is likeliest as the next token."""
        letters = [self._tokenizer(chr(65 + i), add_special_tokens=False)["input_ids"][-1] for i in range(choices)]
        with self._lock:
            found = self._generate([parts], max_new_tokens=1, output_logits=True, return_dict_in_generate=True)[0]
        return int(found.logits[0][0, letters].argmax())

    @torch.inference_mode()
    def _write(self, chats: Sequence[Sequence[Part]], count: int, decoding: DecodingConfig) -> list[str]:
        """`count` replies to each chat, one chat after the other."""
        beams = max(decoding.beams, count)
        ways = {"num_beams": beams, "num_return_sequences": count, "max_new_tokens": decoding.max_length}
        ways |= {"min_new_tokens": decoding.min_length} if decoding.min_length else {}
        ways |= {"length_penalty": decoding.length_penalty} if beams > 1 else {}
        with self._lock:
            found, width = self._generate(chats, **ways)
        new = found if self._model.config.is_encoder_decoder else found[:, width:]
        return [" ".join(text.split()) for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _generate(self, chats: Sequence[Sequence[Part]], **ways):
        """What the model's `generate` gives, and how many tokens the chats have."""
        turns = [[{"role": "user", "content": list(map(self._part, parts))}] for parts in chats]
        inputs = self._processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **self._padded
        ).to(self._device, dtype=self._model.dtype)
        plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}  # else it remarks on its own settings
        found = self._model.generate(**inputs, **plain, pad_token_id=self._tokenizer.pad_token_id, **ways)
        return found, inputs["input_ids"].shape[1]

    def _part(self, part: Part) -> dict:
        if not isinstance(part, str):
            return {"type": "image", "image": part}
        mark = getattr(self._processor, "image_token", None)  # a name that is the mark of an image would claim one
        return {"type": "text", "text": part.replace(mark, " ") if mark else part}
