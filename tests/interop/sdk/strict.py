"""Bodies parsed strictly with the vendors' own SDK types, from their JSON text: a value of another type (`"1760000000"` for a number), a
value outside an enumeration, a missing field and a field that no type declares are errors, at any depth. The SDKs themselves are lenient
with what they receive, so that their clients alone would not notice.

What replies hold beyond their types stands in [`ADDED`], each name with its reason; `also` of a call names what else is let through."""

import collections.abc
import json
import os
import types
import typing
from functools import cache

import anthropic.types as anthropic
import openai.types as openai
import typing_extensions
from google.genai import types as genai
from openai.types import chat, responses
from pydantic import BaseModel, ConfigDict, TypeAdapter

# Fields of replies that no type declares, at any depth, and why they are there.
ADDED = {
    "native_finish_reason": "Refit: the provider's own word",
    "stop_sequence": "Refit: which of the sequences it was, from Anthropic",
    "reasoning_content": "Refit: thoughts as text",
    "thinking_blocks": "Refit: thoughts with their signatures",
    "content_blocks": "Refit: Anthropic's blocks that chat completions have no word for",
    "extra_content": "Refit: Google's signatures, where Google's own endpoint has them",
    "cache_creation_tokens": "Refit: Anthropic's count, in `prompt_tokens_details`",
    "service_tier": "Anthropic's own, passed on",
    "container": "Anthropic's own, passed on",
    "cache_creation": "Anthropic's own, passed on",
    "server_tool_use": "Anthropic's own, passed on",
    "stop_details": "Anthropic's own, passed on",
    "promptTokensDetails": "Gemini's own, passed on",
    "avgLogprobs": "Gemini's own, passed on",
    "trafficType": "Gemini's own, passed on",
    "finishMessage": "Gemini's own, passed on",
    "urlContextMetadata": "Gemini's own, passed on",
    "safety_ratings": "Gemini's own, passed on",
    "bytes": "Refit: of a token in the events of Responses; the SDK declares it in the whole response only",
    "modelVersion": "Gemini's own, passed on",
    "promptFeedback": "Gemini's own, passed on",
    "prompt_filter_results": "Azure answers it; OpenAI's SDK does not declare it",
    "content_filter_results": "Azure answers it; OpenAI's SDK does not declare it",
    "content_filter_offsets": "Azure answers it; OpenAI's SDK does not declare it",
    "store": "OpenAI's Responses answer it; its SDK does not declare it",
}


def closed(typed, seen):
    """The type with every TypedDict in it closed: no field that it does not declare. Iterables become lists: pydantic would validate
    them only when they are read, and would take a text for one. None for what is an object of Python's and no JSON: open files, and
    blocks of a reply, whose types are open."""
    if isinstance(typed, type) and issubclass(typed, BaseModel) or typing.get_origin(typed) in (os.PathLike, typing.IO):
        return None
    if typing_extensions.is_typeddict(typed):
        if typed not in seen:
            seen.add(typed)
            typed.__pydantic_config__ = ConfigDict(extra="forbid")
            hints = typing_extensions.get_type_hints(typed, include_extras=True)
            typed.__annotations__ = {name: closed(held, seen) for name, held in hints.items()}
        return typed
    origin, held = typing.get_origin(typed), typing.get_args(typed)
    if not held or origin is typing.Literal:
        return typed
    if origin is typing.Annotated:
        return closed(held[0], seen)
    held = tuple(item for item in (closed(item, seen) for item in held) if item is not None)
    if not held:
        return None
    if origin in (collections.abc.Iterable, collections.abc.Sequence, list):
        return list[held[0]]
    return typing.Union[held] if origin in (typing.Union, types.UnionType) else origin[held] if origin is dict else typed.copy_with(held)


@cache
def adapter(typed):
    return TypeAdapter(typed)


@cache
def closed_adapter(typed):
    return TypeAdapter(closed(typed, set()))


def request(typed, body, also=()):
    """A request, strictly; `also` names top-level fields that are let through."""
    return closed_adapter(typed).validate_json(json.dumps({name: value for name, value in body.items() if name not in also}), strict=True)


def undeclared(value, path=""):
    """Paths of the fields that a parsed reply holds beyond its types and [`ADDED`]."""
    if isinstance(value, (list, tuple)):
        return [found for i, item in enumerate(value) for found in undeclared(item, f"{path}[{i}]")]
    if not isinstance(value, BaseModel):
        return []
    extra = [f"{path}.{name}" for name in value.model_extra or {} if name not in ADDED]
    return extra + [found for name in type(value).model_fields for found in undeclared(getattr(value, name), f"{path}.{name}")]


def model(typed, body, also=()):
    """A reply, strictly; `also` names top-level fields that are let through."""
    text = json.dumps({name: value for name, value in body.items() if name not in also})
    parsed = adapter(typed).validate_json(text, strict=True)
    assert not (found := undeclared(parsed)), f"no type declares {found}"
    return body


def openai_request(body, also=()):
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as Whole
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as Streaming

    request(Streaming if body.get("stream") else Whole, body, also)


def openai_embeddings_request(body):
    from openai.types.embedding_create_params import EmbeddingCreateParams

    request(EmbeddingCreateParams, body)


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
    # OpenAI's API names the function in this event, too; its SDK no longer declares that.
    also = {"name"} if body["type"] == "response.function_call_arguments.done" else ()
    return model(responses.ResponseStreamEvent, body, also)


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
    request(typed, body, also)


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
    """The SDK has a type for each part of the REST body, and forbids what they do not declare."""
    parts = {
        "contents": list[genai.Content],
        "systemInstruction": genai.Content,
        "generationConfig": genai.GenerationConfig,
        "tools": list[genai.Tool],
        "toolConfig": genai.ToolConfig,
        "safetySettings": list[genai.SafetySetting],
    }
    assert "contents" in body, "contents is missing"
    for name, value in body.items():
        assert name in parts, f"unknown field {name}"
        adapter(parts[name]).validate_json(json.dumps(value), strict=True)


def gemini_embeddings_request(body):
    """`batchEmbedContents`; the SDK builds this body by hand and has no type for it."""
    assert set(body) == {"requests"}, sorted(body)
    for one in body["requests"]:
        assert set(one) <= {"model", "content", "taskType", "title", "outputDimensionality"} and one["model"].startswith("models/"), one
        adapter(genai.Content).validate_json(json.dumps(one["content"]), strict=True)


def gemini_count_request(body):
    """`countTokens`: contents alone, or a whole request that names its model."""
    if "generateContentRequest" in body:
        assert set(body) == {"generateContentRequest"}, sorted(body)
        body = dict(body["generateContentRequest"])
        assert body.pop("model").startswith("models/")
    gemini_request(body)


def gemini_reply(body):
    return model(genai.GenerateContentResponse, body)
