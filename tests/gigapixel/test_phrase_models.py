"""Phrases from language models: what is read from a reply, a model of transformers, and a real HTTP endpoint."""

import json
import socket
import time

import pytest
import torch
from chat_server import said, served
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_llm, tiny_tokenizer
from transformers import AutoTokenizer

from evcap.errors import EvcapError
from evcap.gigapixel.ask.phrase_models import EndpointPhrases, ModelPhrases, messages, read_phrases
from evcap.gigapixel.ask.question import NoPhrases, analyse
from evcap.weights.wheels import smollm2_folder

QUESTION = "How many storage tanks are next to the old harbor in the upper left corner of the picture?"


@pytest.mark.parametrize(
    ("reply", "phrases"),
    [
        ('{"phrases": ["storage tanks", "old harbor"]}', ["storage tanks", "old harbor"]),
        ('Sure!\n```json\n{"phrases": ["The Storage  Tank.", "harbors"]}\n``` Anything else?', ["storage tank", "harbors"]),
        ('{"thought": {"phrases": 3}} {"phrases": ["tanks"]} {"phrases": ["harbor"]}', ["tanks"]),
        ('{"phrases": ["tanks", "tanks", "airplanes", "the upper left corner", "picture", 7, null, ["harbor"]]}', ["tanks"]),
        (
            '{"phrases": ["tank", "harbor", "storage tanks", "old tanks", "old harbor", "old storage tanks"]}',
            ["tank", "harbor", "storage tanks", "old tanks", "old harbor"],
        ),
        ('{"phrases": ["old", "next", "red tanks", "old harbor with tanks"]}', ["old harbor with tanks"]),
        ('{"phrases": "storage tanks"}', []),
        ('["storage tanks"]', []),
        ('{"phrases": ["storage tanks"', []),
        ("__import__('os').system('echo storage tanks')", []),
        ('{"phrases": ["' + "storage " * 50 + '"]}', []),
        ("{" * 100_000, []),
        ('{"phrases":' + "[" * 100_000, []),
        ("", []),
    ],
)
def test_read_phrases(reply, phrases):
    assert read_phrases(reply, QUESTION) == phrases


@given(st.text() | st.lists(st.text(), max_size=8).map(lambda found: json.dumps({"phrases": found})), st.text())
def test_any_reply(reply, question):
    phrases = read_phrases(reply, question)
    assert len(phrases) <= 5 and len(set(phrases)) == len(phrases)
    assert all(phrase and phrase == phrase.lower() and len(phrase) <= 60 for phrase in phrases)


class Scripted:
    """In place of a model: `generate` gives these texts behind the prompt, whatever that is."""

    device = "cpu"

    def __init__(self, tokenizer, *replies: str):
        self.tokenizer, self.replies = tokenizer, replies

    def generate(self, ids, num_return_sequences, **_):
        self.prompt = self.tokenizer.decode(ids[0])
        rows = [self.tokenizer(reply, add_special_tokens=False)["input_ids"] for reply in self.replies[:num_return_sequences]]
        width = max(map(len, rows))
        return torch.tensor([ids[0].tolist() + row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows])


@pytest.fixture(scope="module")
def smollm2_tokenizer():
    return AutoTokenizer.from_pretrained(smollm2_folder())


def test_model_goes_on_in_json(smollm2_tokenizer):
    """Its answer is begun for it, and the first of its answers that is usable counts."""
    model = Scripted(smollm2_tokenizer, 'moon"]}', 'storage tanks", "harbor"]}\nMore?', 'old harbor"]}')
    assert ModelPhrases(model, smollm2_tokenizer)(QUESTION) == ["storage tanks", "harbor"]
    turns = messages(QUESTION)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert read_phrases(turns[2]["content"], turns[1]["content"])  # the example is one that counts
    assert QUESTION in model.prompt and model.prompt.endswith('assistant\n{"phrases": ["')


def test_model_without_usable_answers(smollm2_tokenizer):
    model = Scripted(smollm2_tokenizer, 'moon"]}', '"', "tanks")
    asked = analyse(QUESTION, ModelPhrases(model, smollm2_tokenizer))
    assert asked.phrases == ["storage tanks", "old harbor"]
    assert asked.note.startswith("the language model named nothing that the question speaks of; the nouns")


def test_model_of_transformers_without_a_chat_template():
    """A real model with random weights talks nonsense, the same each time, and that is told."""
    backend = ModelPhrases(tiny_llm(), tiny_tokenizer(), beams=2, new_tokens=4)
    replies = backend._replies("Is there a dam?", 2)
    assert len(replies) == 2 and replies == backend._replies("Is there a dam?", 2)
    with pytest.raises(NoPhrases, match="named nothing"):
        backend("Is there a dam?")


@pytest.fixture
def endpoint(monkeypatch):
    with served(monkeypatch) as server:
        yield server


def test_endpoint(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    endpoint.script = [said('{"phrases": ["storage tanks"]}')]
    asked = analyse(QUESTION, EndpointPhrases(endpoint.url, "some-model"))
    assert asked.phrases == ["storage tanks"] and asked.note == ""
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-secret"
    assert body["model"] == "some-model" and body["messages"] == messages(QUESTION)


def test_endpoint_without_a_key_and_by_its_whole_address(endpoint):
    endpoint.script = [said('{"phrases": ["harbor"]}')]
    assert EndpointPhrases(endpoint.url + "/chat/completions/", "m")(QUESTION) == ["harbor"]
    assert endpoint.seen[0][0] == "/v1/chat/completions" and "Authorization" not in endpoint.seen[0][1]


MALFORMED = {
    "no JSON": (200, "<html>hello</html>"),
    "no choices": (200, '{"choices": []}'),
    "another shape": (200, '{"choices": {"0": "x"}}'),
    "a list": (200, "[1, 2]"),
    "no content": said(None),
    "content in parts": said([{"type": "text", "text": "{}"}]),
    "deep": (200, "[" * 100_000),
    "overloaded": (503, "later"),
    "too many": (429, "{}"),
    "nonsense": said("I think you mean tanks"),
    "of something else": said('{"phrases": ["airplane"]}'),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_one_bad_answer_is_asked_again(endpoint, name):
    endpoint.script = [MALFORMED[name], said('{"phrases": ["tanks"]}')]
    assert EndpointPhrases(endpoint.url, "m")(QUESTION) == ["tanks"]
    assert len(endpoint.seen) == 2 and endpoint.waited == [0, 1]


@pytest.mark.parametrize("name", MALFORMED)
def test_bad_answers_give_way_to_chunks(endpoint, name):
    endpoint.script = [MALFORMED[name]]
    asked = analyse(QUESTION, EndpointPhrases(endpoint.url, "m"))
    assert asked.phrases == ["storage tanks", "old harbor"] and len(endpoint.seen) == 3
    assert asked.note.startswith(f"{endpoint.url}/chat/completions ") and "(3 tries)" in asked.note and "\n" not in asked.note


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "the key"), (403, "the key"), (404, "the model 'm'"), (400, "the model 'm'")]
)
def test_refusals_stop(endpoint, status, hint):
    """What only the user can mend is no reason to go on without the model that was asked for."""
    endpoint.script = [(status, "no")]
    with pytest.raises(EvcapError, match=f"refuses: {status} .*check .*{hint}"):
        analyse(QUESTION, EndpointPhrases(endpoint.url, "m", key="k"))
    assert len(endpoint.seen) == 1


def test_key_is_not_carried_elsewhere(endpoint):
    endpoint.script = [(302, ""), said('{"phrases": ["tanks"]}')]
    with pytest.raises(EvcapError, match="refuses: 302"):
        EndpointPhrases(endpoint.url, "m", key="secret")(QUESTION)
    assert len(endpoint.seen) == 1


def silent(handler):
    time.sleep(0.6)


def dribbling(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def torn(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')


def gone(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("step", "timeout", "reason"),
    [
        (silent, 0.3, "did not answer within 0.3 s"),
        (dribbling, 0.3, "did not answer within 0.3 s"),
        (torn, 60, "answered, but not with a chat completion"),
        (gone, 60, "cannot be reached"),
    ],
)
def test_endpoint_that_fails_under_way(endpoint, step, timeout, reason):
    endpoint.script = [step]
    with pytest.raises(NoPhrases, match=reason):
        EndpointPhrases(endpoint.url, "m", timeout=timeout, tries=1)(QUESTION)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * (1 << 16))


def test_endless_answer_is_cut(endpoint):
    endpoint.script = [endless]
    with pytest.raises(NoPhrases, match="not with a chat completion .1 try"):
        EndpointPhrases(endpoint.url, "m", tries=1)(QUESTION)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        asked = analyse("Is there a dam?", EndpointPhrases(url, "m", tries=1))
    assert asked.phrases == ["dam"] and "cannot be reached: Connection refused" in asked.note


@pytest.mark.parametrize("url", ["", "localhost:8000", "file:///etc/passwd", "ftp://a/b", "http://", "http://a b"])
def test_addresses_that_are_none(url):
    with pytest.raises(EvcapError, match="is no address of an endpoint"):
        EndpointPhrases(url, "m")


def test_key_that_cannot_be_sent():
    with pytest.raises(EvcapError, match="holds letters that no key has"):
        EndpointPhrases("http://localhost/v1", "m", key="a\r\nHost: b")
