"""The written translations (`tests/fixtures/wire`), all four sides parsed strictly with the vendors' SDK types."""

import json
from pathlib import Path

import pytest
import strict

FILES = sorted((Path(__file__).parents[2] / "fixtures" / "wire").glob("*.json"))
# What a fixture adds on purpose to show that unknown fields pass, and what a row calls otherwise.
MADE_UP = {"made_up", "random_seed"}


def provider_request(fixture):
    body, provider = fixture["upstream_request"]["body"], fixture["provider"]
    if provider == "anthropic":
        version = fixture["upstream_request"]["headers"]["anthropic-version"]
        strict.anthropic_request(body, version, fixture["endpoint"].endswith("count_tokens"), MADE_UP)
    elif provider == "gemini" and "batchEmbedContents" not in fixture["upstream_request"]["path"]:
        strict.gemini_request(body)
    elif fixture["endpoint"] == "/v1/embeddings" and provider != "gemini":
        strict.openai_embeddings_request(body)
    elif provider != "gemini":
        strict.openai_request(body, MADE_UP)


def provider_reply(fixture):
    reply, provider = fixture["upstream_reply"], fixture["provider"]
    if reply["status"] != 200 or fixture["endpoint"] in ("/v1/embeddings", "/v1/messages/count_tokens"):
        return
    whole, event = {
        "anthropic": (strict.anthropic_reply, strict.anthropic_event),
        "gemini": (strict.gemini_reply, strict.gemini_reply),
    }.get(provider, (strict.openai_reply, strict.openai_chunk))
    # Azure's first chunk leaves its object empty, as the service does; an error inside a success is in no vendor's types.
    events = [data for _, data in reply.get("events", []) if data != "[DONE]" and data.get("object") != ""]
    events = [data for data in events if "error" not in data or provider == "anthropic"]
    for data in events:
        event(data)
    if "body" in reply and "error" not in reply["body"]:
        whole(reply["body"])


def caller_reply(fixture):
    reply, endpoint = fixture["reply"], fixture["endpoint"]
    whole, event = {
        "/v1/chat/completions": (strict.openai_reply, strict.openai_chunk),
        "/v1/completions": (strict.completion, strict.completion),
        "/v1/embeddings": (strict.embeddings, None),
        "/v1/responses": (strict.response, strict.response_event),
        "/v1/messages": (strict.anthropic_reply, strict.anthropic_event),
        "/v1/messages/count_tokens": (lambda body: body["input_tokens"] + 0, None),
    }[endpoint]
    if "events" in reply:
        for kind, data in reply["events"]:
            if data != "[DONE]" and "error" not in data and data.get("object") != "":
                event(data)
            if isinstance(data, dict) and endpoint in ("/v1/responses", "/v1/messages"):
                assert kind == data["type"]
    elif reply["status"] == 200:
        whole(reply["body"])
    else:
        error = reply["body"]["error"]
        assert isinstance(error["message"], str) and isinstance(error["type"], str)


@pytest.mark.parametrize("side", [provider_request, provider_reply, caller_reply], ids=lambda side: side.__name__)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_side_is_what_the_vendors_types_say(file, side):
    side(json.loads(file.read_text()))
