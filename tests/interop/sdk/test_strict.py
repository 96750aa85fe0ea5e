"""The judges can say no: a body that the vendor would take passes, and each of these small faults in it is found."""

import copy

import pytest
import strict
from vendors import Vendors

CHAT = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [
    {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": "x", "refusal": None}}]}
ASK = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "tools": [
    {"type": "function", "function": {"name": "f", "parameters": {"anything": {"goes": 1}}}}]}
CLAUDE = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}
GEMINI = {"contents": [{"role": "user", "parts": [{"text": "x"}]}], "generationConfig": {"maxOutputTokens": 5}}
EVENT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}
claude = lambda body: strict.anthropic_request(body, "2026-10-21")  # noqa: E731


def test_what_is_right_passes():
    strict.openai_reply(CHAT), strict.openai_request(ASK), claude(CLAUDE), strict.gemini_request(GEMINI), strict.anthropic_event(EVENT)


@pytest.mark.parametrize(
    ("judge", "body", "path", "value"),
    [
        (strict.openai_reply, CHAT, ["created"], "1760000000"),
        (strict.openai_reply, CHAT, ["choices", 0, "index"], "0"),
        (strict.openai_reply, CHAT, ["choices", 0, "finish_reason"], "ended"),
        (strict.openai_reply, CHAT, ["choices", 0, "message", "made_up"], 1),
        (strict.openai_reply, CHAT, ["made_up"], None),
        (strict.openai_request, ASK, ["messages", 0, "content", 0, "made_up"], 1),
        (strict.openai_request, ASK, ["messages", 0, "content", 0, "text"], 7),
        (strict.openai_request, ASK, ["messages", 0, "thinking_blocks"], []),
        (strict.openai_request, ASK, ["tools", 0, "function", "made_up"], 1),
        (strict.openai_request, ASK, ["temperature"], "1"),
        (claude, CLAUDE, ["messages", 0, "content", 0, "made_up"], 1),
        (claude, CLAUDE, ["messages", 0, "name"], "x"),
        (claude, CLAUDE, ["max_tokens"], "5"),
        (claude, CLAUDE, ["temperature"], 0.5),
        (strict.gemini_request, GEMINI, ["contents", 0, "parts", 0, "made_up"], 1),
        (strict.gemini_request, GEMINI, ["generationConfig", "maxOutputTokens"], "5"),
        (strict.anthropic_event, EVENT, ["index"], "0"),
        (strict.anthropic_event, EVENT, ["delta", "made_up"], 1),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else None,
)
def test_a_fault_is_found(judge, body, path, value):
    body = copy.deepcopy(body)
    at = body
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(Exception, match="."):
        judge(body)


def test_a_key_that_goes_astray_is_found():
    vendors = Vendors()
    try:
        keys, right = vendors.keys, {"x-api-key": vendors.keys["anthropic"]}
        assert vendors.check_key("anthropic", right) is None
        assert vendors.check_key("anthropic", {"x-api-key": keys["gemini"]})
        assert vendors.check_key("anthropic", {})
        assert vendors.check_key("anthropic", right | {"authorization": "Bearer x"})
        assert vendors.check_key("anthropic", right | {"cookie": keys["openai"]})
        assert vendors.check_key("openai", {"authorization": f"Bearer {keys['groq']}"})
    finally:
        vendors.close()
