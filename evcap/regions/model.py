"""What the spine lacks to tell of regions: the fusion of views in front of the Q-Former, heads and prompts behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from evcap.config import DecodingConfig, Preset, RegionConfig
from evcap.errors import EvcapError
from evcap.language.lora import LoraLinear, twin
from evcap.language.model import Hypothesis, LanguageModel, Prompt, TextBlock
from evcap.model.build import build_encoder, build_language, build_model
from evcap.model.evcap import EVCap, QueryEncoder, fill
from evcap.model.name_fusion import name_tokenizer
from evcap.model.qformer import QFormer
from evcap.regions.heads import RegionTextHead, TagHead
from evcap.regions.text_tower import build_text_tower
from evcap.regions.view_fusion import ViewFusion
from evcap.weights.shipped import read_trained


class RegionModel(nn.Module):
    """The trained parts of a region captioner, beside a spine that stays as it is and is no part of it.

    spine: its tower, its Q-Former, and where it is an EVCap its name fusion. language: of the spine or of its own; regions
    caption with a twin of it that may have adapters of its own. Without one nothing is said.
    """

    def __init__(self, spine: QueryEncoder, language: LanguageModel | None):
        super().__init__()
        self.__dict__["spine"] = spine
        preset = spine.preset
        config = self.config = preset.regions or RegionConfig()
        vision, width, hidden = preset.vision, preset.image_qformer.width, preset.language.hidden
        self.view_fusion = ViewFusion(
            vision.width,
            config.views,
            spine.backbone.prefix,
            config.hidden or None,
            config.inner or None,
            config.align,
            residual=config.residual,
        )
        self.tag_head, self.region_text_head = (
            kind(width, config.text_width, config.head) for kind in (TagHead, RegionTextHead)
        )
        self.image_qformer = QFormer(preset.image_qformer, preset.image_queries, vision.width) if config.qformer else None
        self.text_tower = build_text_tower() if config.texts == "eva-clip" else None
        self.projection = nn.Linear(width, hidden)
        if isinstance(spine, EVCap):  # regions begin where photos are
            self.projection.load_state_dict(spine.projection.state_dict())
            self._tokenize = name_tokenizer()
        self.language = language and _twin(language, config)
        self.control_embedding = nn.Parameter(torch.zeros(hidden)) if config.control_vector else None

    @property
    def device(self) -> torch.device:
        return self.projection.weight.device

    @property
    def grid(self) -> tuple[int, int]:
        return self.spine.backbone.grid(*[self.size] * 2)

    @property
    def size(self) -> int:
        """Pixels a side that views are resized to."""
        return self.spine.preset.vision.image_size

    def queries(self, tokens: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Patch tokens (R,V,P,C) of the views of regions, boxes (R,V,4) of the region in each -> Q (R,32,W)."""
        fused = self.view_fusion(tokens, boxes, self.grid, self.size)
        return self.image_qformer(fused) if self.image_qformer is not None else self.spine.query_features(fused)

    def prompt(self, queries: torch.Tensor, names: Sequence[Sequence[str]], controls: Sequence[str], slots: int = 0) -> Prompt:
        """Q (R,32,W), the names of R regions and their control words -> what the language model goes on from.

        slots: fixed width of the text, for compiled training; 0 = as wide as the longest needs.
        """
        language, config = self.language, self.language.config
        vectors = queries
        if isinstance(self.spine, EVCap):
            retrieved = self._tokenize(names).to(queries.device)
            vectors = torch.cat([queries, self.spine.name_features(queries, retrieved)], dim=1)
        first = [*language.first, *language.ids(config.before)]
        head, begun = (first, []) if self.config.begin else ([], first)
        rows = [
            [
                *begun,
                *language.ids(self.config.words.format(words=words))[: self.config.words_tokens],
                *(language.name_ids(row) if config.names_in_prompt else []),
                *language.ids(config.after),
                *language.last,
            ]
            for words, row in zip(controls, names, strict=True)
        ]
        text = TextBlock(rows, slots, self.control_embedding)
        return language.joined([TextBlock([head] * len(rows)), self.projection(vectors), text])

    def widest_text(self) -> int:
        """Slots that the text of a prompt needs at most; compiled training pads to it."""
        language, config = self.language, self.language.config
        begun = 0 if self.config.begin else len(language.first) + len(language.ids(config.before))
        names = config.names_tokens if config.names_in_prompt else 0
        return begun + self.config.words_tokens + names + len(language.ids(config.after)) + len(language.last)

    def captions(
        self,
        queries: torch.Tensor,
        names: Sequence[Sequence[str]],
        controls: Sequence[str],
        count: int,
        decoding: DecodingConfig,
    ) -> list[list[Hypothesis]]:
        """Q (R,32,W), names and control words of R regions -> `count` captions of each, likeliest first."""
        return self.language.decode(self.prompt(queries, names, controls), count, decoding)

    def trained(self) -> dict[str, torch.Tensor]:
        """The tensors that no other file gives: all but the language model's own."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith("language.") or name.endswith((".down", ".up"))
        }

    def load(self, given: Mapping[str, torch.Tensor], where: str) -> None:
        """Copy trained tensors into the model: all of them, each of its shape. EvcapError names the first that does not fit."""
        fill(self.trained(), given, where)


def learns(name: str) -> bool:
    """Whether a parameter of a RegionModel is trained: as in the release, not query tokens, nor what reads texts, nor the
    language model but for adapters."""
    return not name.startswith(("text_tower.", "image_qformer.queries", "language.")) or name.endswith((".down", ".up"))


def _twin(language: LanguageModel, config: RegionConfig) -> LanguageModel:
    """The language model with the prompt and the adapters of regions, over the same tensors."""
    if any(isinstance(module, LoraLinear) for module in language.llm.modules()):
        raise EvcapError("regions have adapters of their own: open the captioner with merged=True")
    own = replace(
        language.config,
        after=config.after,
        names_tokens=config.names_tokens,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        names_in_prompt=language.config.names_in_prompt and not config.names_as_words,
    )
    return type(language)(own, twin(language.llm), language.tokenizer)


def open_spine(
    preset: Preset, trained: str | Path | None, precision: str, device: torch.device
) -> tuple[QueryEncoder, LanguageModel]:
    """What regions stand on: the whole EVCap of a preset that writes by itself, else its encoder and its language model.

    trained: the spine's tensors. precision: of the language model. Adapters are folded in.
    """
    if preset.generator.kind == "evcap":
        model = build_model(preset, trained, precision, device)
        model.language.merge()
        return model, model.language
    return build_encoder(preset, trained, device), build_language(preset.language, precision, device)


def open_regions(spine: QueryEncoder, language: LanguageModel, trained: str | Path | None) -> RegionModel:
    """The region model of a spine, in eval mode, with its tensors; `trained`: None = as it is drawn.

    language: with adapters folded in, if it has any. Raises EvcapError for a file that does not fit.
    """
    model = RegionModel(spine, language)
    if trained is not None:
        model.load(read_trained(trained), str(trained))
    return model.to(spine.device).eval()
