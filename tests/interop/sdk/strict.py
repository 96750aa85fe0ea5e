"""Bodies parsed strictly with the vendors' own SDK types: wrong values, wrong types and unknown top-level fields are errors. The SDKs
themselves are lenient with what they receive, so that their clients alone would not notice."""

from collections.abc import Iterator
from functools import cache

import anthropic.types as anthropic
import openai.types as openai
from google.genai import types as genai
from openai.types import chat, responses
from pydantic import BaseModel, TypeAdapter


def forced(value):
    """Iterables are validated while they are read."""
    if isinstance(value, dict):
        return {name: forced(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, Iterator)) or type(value).__name__ == "ValidatorIterator":
        return [forced(item) for item in value]
    return value


def known(body, typed, also=()):
    fields = set()
    for base in typed if isinstance(typed, tuple) else (typed,):
        fields |= set(base.__annotations__)
    unknown = set(body) - fields - set(also)
    assert not unknown, f"unknown fields {sorted(unknown)}"


@cache
def adapter(typed):
    """Kept: what is validated while it is read needs its adapter alive."""
    return TypeAdapter(typed)


def adapted(typed, body):
    return forced(adapter(typed).validate_python(body))


def openai_request(body, also=()):
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as Whole
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as Streaming

    typed = Streaming if body.get("stream") else Whole
    known(body, typed, also)
    adapted(typed, {name: value for name, value in body.items() if name not in also})


def openai_embeddings_request(body):
    from openai.types.embedding_create_params import EmbeddingCreateParams

    known(body, EmbeddingCreateParams)
    adapted(EmbeddingCreateParams, body)


def model(typed, body):
    """A reply, strictly: every value has the type that the SDK declares."""
    if isinstance(typed, type) and issubclass(typed, BaseModel):
        typed.model_validate(body)
    else:
        adapter(typed).validate_python(body)
    return body


def openai_reply(body):
    return model(chat.ChatCompletion, body)


def openai_chunk(body):
    return model(chat.ChatCompletionChunk, body)


def completion(body):
    for choice in body["choices"]:
        # The type of a chunk is that of a whole reply; while it runs, its reason is null in the API.
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    return model(openai.Completion, body)


def embeddings(body):
    # The SDK decodes base64 itself; its type is the decoded one.
    for item in body["data"]:
        if isinstance(item["embedding"], str):
            item["embedding"] = [0.0]
    return model(openai.CreateEmbeddingResponse, body)


def response(body):
    return model(responses.Response, body)


def response_event(body):
    return model(responses.ResponseStreamEvent, body)


def anthropic_request(body, version, counting=False, also=()):
    from anthropic.types.message_count_tokens_params import MessageCountTokensParams
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming as Whole
    from anthropic.types.message_create_params import MessageCreateParamsStreaming as Streaming

    typed = MessageCountTokensParams if counting else Streaming if body.get("stream") else Whole
    if version == "2023-06-01":
        # The SDK's types are those of the later version, which has no sampling.
        also = {*also, "temperature", "top_p", "top_k"}
    else:
        assert version == "2026-10-21", version
    known(body, typed, also)
    adapted(typed, {name: value for name, value in body.items() if name not in also})


def anthropic_reply(body):
    return model(anthropic.Message, body)


def anthropic_event(body):
    if body["type"] == "ping":
        return body
    if body["type"] == "error":
        assert set(body) <= {"type", "error", "request_id"} and {"type", "message"} <= set(body["error"]), body
        return body
    return model(anthropic.RawMessageStreamEvent, body)


def gemini_request(body):
    """The SDK has a type for each part of the REST body."""
    parts = {
        "contents": lambda value: [genai.Content.model_validate(item) for item in value],
        "systemInstruction": genai.Content.model_validate,
        "generationConfig": genai.GenerationConfig.model_validate,
        "tools": lambda value: [genai.Tool.model_validate(item) for item in value],
        "toolConfig": genai.ToolConfig.model_validate,
        "safetySettings": lambda value: [genai.SafetySetting.model_validate(item) for item in value],
    }
    for name, value in body.items():
        assert name in parts, f"unknown field {name}"
        parts[name](value)


def gemini_reply(body):
    genai.GenerateContentResponse.model_validate(body)
    return body


