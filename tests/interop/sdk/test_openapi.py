"""schemathesis throws generated requests, valid and not, at every operation of our OpenAPI document: no 5xx, and no answer that the
document does not describe."""

import json
import os
import subprocess
import sys
import urllib.request

from cases import CITY, HELLO, PNG, SCHEMA, TOOL
from conftest import CAPABLE, MODELS

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Names that exist, so that requests get past the door.
NAMES = ["mock/echo", "mock/fixed", *(MODELS[provider] for provider in CAPABLE)]

ARGUMENTS = json.dumps({"city": "Ulm"})
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
CLAUDE_IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
CLAUDE_CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Ulm"}}
# What no generator hits upon: whole conversations, tools and formats, by the end of the path. Everything beside them is generated.
WHOLE = {
    "/chat/completions": {
        "messages": [
            HELLO,
            [{"role": "system", "content": "Short."}, {"role": "user", "content": [{"type": "text", "text": "What?"}, IMAGE]}],
            HELLO + [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1", "content": "7"}],
        ],
        "tools": [None, [TOOL]],
        "tool_choice": [None, "auto", {"type": "function", "function": {"name": "get_weather"}}],
        "response_format": [None, {"type": "text"}, {"type": "json_schema", "json_schema": {"name": "t", "strict": True, "schema": SCHEMA}}],
        "stream_options": [None, {"include_usage": True}],
        "prompt": [None],
    },
    "/messages": {
        "messages": [
            HELLO,
            [{"role": "user", "content": [{"type": "text", "text": "What?"}, CLAUDE_IMAGE]}],
            HELLO + [{"role": "assistant", "content": [CLAUDE_CALL]}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "7"}]}],
        ],
        "tools": [[], [{"name": "get_weather", "input_schema": CITY}]],
        "tool_choice": [{"type": "auto"}, {"type": "tool", "name": "get_weather"}],
        "thinking": [{"type": "disabled"}, {"type": "adaptive"}],
        "output_config": [{"format": {"type": "json_schema", "schema": SCHEMA}}, {"effort": "low"}],
        "system": ["Short.", [{"type": "text", "text": "Short."}]],
    },
    "/responses": {
        "input": [
            "Say hi.",
            [{"role": "user", "content": [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": IMAGE["image_url"]["url"]}]}],
            [{"role": "user", "content": "Weather?"}, {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": ARGUMENTS}, {"type": "function_call_output", "call_id": "c", "output": "7"}],
        ],
        "tools": [[], [{"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}]],
        "tool_choice": ["auto", {"type": "function", "name": "get_weather"}],
        "text": [{}, {"format": {"type": "json_schema", "name": "t", "strict": True, "schema": SCHEMA}}],
        "reasoning": [None, {"effort": "low"}],
        "prompt": [None], "previous_response_id": [None], "conversation": [None], "background": [None, False], "truncation": [None, "disabled"], "include": [None],
    },
    "/completions": {"prompt": ["Say hi.", ["Say hi."]]},
    "/embeddings": {"input": ["a", ["a", "b"]], "encoding_format": ["float", "base64"]},
}
# What Anthropic has no word for stays away from one half of the paths, so that something is left to be answered there.
REFUSED = {name: [None] for name in ("n", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "seed", "reasoning_effort")}
REFUSED |= {"temperature": [0.5, 1], "top_p": [0.5, 1]}
WHOLE["/count_tokens"] = WHOLE["/messages"]


def document(refit, whole):
    """Ours, with the names of models that exist; and with whole conversations, where those are asked for."""
    with urllib.request.urlopen(f"{refit.url}/openapi.json") as reply:
        document = json.load(reply)
    for name, path in document["paths"].items():
        given = next((fields for end, fields in WHOLE.items() if name.endswith(end)), {}) if whole else {}
        given = {**REFUSED, **given} if given and name.startswith("/v1/") else given
        names = NAMES[2:] if whole else NAMES
        for operation in path.values():
            # The key travels in a header of our own; where schemathesis adds one that it makes up, the two are refused.
            operation.pop("security", None)
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if given and "properties" in schema:
                needed = ("model", "messages", "max_tokens", "input", *(["prompt"] if name.endswith("/completions") else []))
                schema["required"] = [field for field in needed if field in schema["properties"]]
            for field in schema.get("properties", {}):
                if field == "model" or field in given:
                    schema["properties"][field] = {"enum": names if field == "model" else given[field]}
            for answer in operation["responses"].values():
                if stream := answer.get("content", {}).get("text/event-stream"):
                    # The document describes the body; schemathesis reads that as of each event.
                    stream["schema"] = {"type": "object", "required": ["data"]}
            for parameter in operation.get("parameters", []):
                parameter["schema"] = {"enum": names}
    return document


def schemathesis(refit, document, tmp_path, *options):
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    program = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    command = [program, "run", str(file), "--url", refit.url, "--header", f"Authorization: Bearer {refit.key}", "--checks", CHECKS]
    # One worker: CPython 3.11 counts the depth of `ast.parse` for all threads together, and Hypothesis parses the source of its
    # strategies; two at once end in "SystemError: AST constructor recursion depth mismatch".
    command += ["--seed", "1", "--workers", "1", "--request-timeout", "30", "--suppress-health-check", "filter_too_much", *options]
    with refit.vendors.tolerating():
        done = subprocess.run(command, capture_output=True, text=True, timeout=540, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_schemathesis_finds_nothing(refit, tmp_path):
    schemathesis(refit, document(refit, whole=False), tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "25")


def test_schemathesis_finds_nothing_behind_the_door(refit, tmp_path):
    """Requests that are valid but for their generated fields: each provider's translation is reached, and often."""
    asked = len(refit.vendors.seen)
    schemathesis(refit, document(refit, whole=True), tmp_path, "--phases", "fuzzing", "--mode", "positive", "--max-examples", "40")
    reached = [seen.provider for seen in refit.vendors.seen[asked:]]
    counts = {provider: reached.count(provider) for provider in refit.vendors.keys}
    assert min(counts.values()) >= 20, counts
