"""Key phrases of a question from a language model: any of transformers, or an OpenAI-compatible endpoint.

Both are asked for JSON, which is parsed and checked, never evaluated. A phrase counts only if it is made of words of the
question: small models gladly add a colour or a target that nobody asked for. What remains wrong raises NoPhrases, on which
`question.analyse` falls back to noun chunks with a note. An endpoint that cannot be used as it is set up (its address, its
key, the model's name) raises EvcapError instead: that only the user can mend.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from evcap.generators.chat_completions import Endpoint, Failed
from evcap.gigapixel.ask.chunks import MOST_PHRASES, PICTURE, POSITION, QUANTITY, VAGUE, noun_chunks
from evcap.gigapixel.ask.question import NoPhrases
from evcap.language.sentences import FUNCTION_WORDS
from evcap.memory.names import pluralize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST_PHRASE = 60  # letters
OPENING = '{"phrases": ["'
INSTRUCTIONS = """\
You prepare a search in a satellite or aerial picture. From the user's question, pick what has to be found on the ground.
- Name things that can be seen from above: objects, buildings, vehicles, land cover.
- Keep an adjective only together with the thing it describes.
- Leave out where it lies (left, upper corner, north) and words for the picture itself (image, photo, scene, area).
- Give one to five short phrases in the words of the question, the most important one first.
Answer with JSON only, like {"phrases": ["...", "..."]}."""
EXAMPLE = "What colour are the two buses parked behind the old town hall on the left of the photo?"
EXAMPLE_PHRASES = ["buses", "old town hall"]


def messages(question: str) -> list[dict[str, str]]:
    """The chat that asks for the phrases of a question: instructions, one example with its answer, the question."""
    answer = json.dumps({"phrases": EXAMPLE_PHRASES})
    turns = [("system", INSTRUCTIONS), ("user", EXAMPLE), ("assistant", answer), ("user", question)]
    return [{"role": role, "content": content} for role, content in turns]


def read_phrases(reply: str, question: str) -> list[str]:
    """At most 5 different phrases, lower-case, from the first JSON object in a reply that has a list "phrases".

    Dropped: what is no short text, names nothing ("green"), or has words that the question has not. Nothing usable gives [].
    """
    said = _telling_words(question)
    texts = [" ".join(phrase.lower().split()) for phrase in _first_list(reply) if isinstance(phrase, str)]
    phrases = dict.fromkeys(re.sub(r"^(?:the|an?|any|some) ", "", text.strip(" .,;:!?\"'")) for text in texts)
    told = ((phrase, _telling_words(phrase)) for phrase in phrases if len(phrase) <= LONGEST_PHRASE)
    return [phrase for phrase, words in told if words and words <= said and noun_chunks(phrase)][:MOST_PHRASES]


def _telling_words(text: str) -> set[str]:
    """Words that can name a target, each in its plural, so that "plane" is found in "planes"."""
    words = set(re.findall(r"[^\W_]{2,}", text.lower()))
    return {pluralize(word) for word in words - FUNCTION_WORDS - PICTURE - POSITION - QUANTITY - VAGUE}


def _first_list(reply: str) -> list:
    decoder = json.JSONDecoder()
    for place in [match.start() for match in re.finditer(r"\{", reply)][:20]:
        try:
            found, _ = decoder.raw_decode(reply, place)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("phrases"), list):
            return found["phrases"]
    return []


class ModelPhrases:
    """Phrases from a causal language model of transformers that is open already, with its tokenizer.

    The answer's first letters are given, so that even a small model goes on in JSON. If its likeliest next words are not
    usable, it is tried once more with `beams` answers of a beam search. Deterministic.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, beams: int = 3, new_tokens: int = 48):
        self.model, self.tokenizer, self.beams, self.new_tokens = model, tokenizer, beams, new_tokens

    def __call__(self, question: str) -> list[str]:
        """question -> phrases; raises NoPhrases when none of the answers is usable."""
        for beams in (1, self.beams):
            for reply in self._replies(question, beams):
                if phrases := read_phrases(OPENING + reply, question):
                    return phrases
        raise NoPhrases("the language model named nothing that the question speaks of")

    def _replies(self, question: str, beams: int) -> list[str]:
        """The `beams` likeliest answers, without their given first letters."""
        import torch
        from transformers import StoppingCriteriaList

        ids = torch.tensor([self._prompt(question)], device=self.model.device)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ways = {"do_sample": False, "num_beams": beams, "num_return_sequences": beams, "pad_token_id": pad}
        stop = StoppingCriteriaList([self._is_closed])
        with torch.inference_mode():
            mask, most = torch.ones_like(ids), self.new_tokens
            found = self.model.generate(ids, attention_mask=mask, max_new_tokens=most, stopping_criteria=stop, **ways)
        return [f"{text}}}" for text in self.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)]

    def _is_closed(self, ids: torch.Tensor, *_, **__) -> torch.Tensor:
        """Which of (n,length) token rows end in the bracket that closes the list, (n,) bool."""
        import torch

        return torch.tensor(["]" in text for text in self.tokenizer.batch_decode(ids[:, -1:])], device=ids.device)

    def _prompt(self, question: str) -> list[int]:
        from evcap.language.model import chat_tokens

        return chat_tokens(self.tokenizer, messages(question), OPENING)


class EndpointPhrases:
    """Phrases from an OpenAI-compatible endpoint; the arguments are those of `Endpoint`."""

    def __init__(self, url: str, model: str, key: str | None = None, timeout: float = 60.0, tries: int = 3):
        self._endpoint = Endpoint(url, model, key, timeout, tries)

    def __call__(self, question: str) -> list[str]:
        """question -> phrases; NoPhrases when the tries are used up, EvcapError when the endpoint refuses the settings."""
        useless = "named nothing that the question speaks of"
        try:
            return self._endpoint.ask(
                messages(question), lambda reply: read_phrases(reply, question), useless, temperature=0, max_tokens=200
            )
        except Failed as error:
            raise NoPhrases(str(error)) from None
