"""The Anthropic Python SDK against every provider."""

import json

import anthropic
import pytest
from cases import CITY, HELLO, KIND, PNG, SCHEMA, answers
from conftest import CAPABLE, MODELS

ALL = list(MODELS)
TOOL = {"name": "get_weather", "description": "Weather of a city", "input_schema": CITY}


@pytest.fixture
def client(refit):
    return anthropic.Anthropic(base_url=refit.url, api_key=refit.key, max_retries=0)


def text(message):
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.parametrize("provider", ALL)
def test_messages_plain(client, provider):
    message = client.messages.create(model=MODELS[provider], max_tokens=16, messages=HELLO)
    assert answers(provider, text(message)) and message.stop_reason in ("end_turn", "max_tokens") and message.usage.output_tokens > 0


@pytest.mark.parametrize("provider", ALL)
def test_messages_stream(client, provider):
    with client.messages.stream(model=MODELS[provider], max_tokens=16, messages=HELLO) as stream:
        streamed = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert answers(provider, streamed) and text(message) == streamed
    assert message.stop_reason in ("end_turn", "max_tokens") and message.usage.output_tokens > 0


@pytest.mark.parametrize("provider", CAPABLE)
def test_messages_tools(client, provider):
    message = client.messages.create(model=MODELS[provider], max_tokens=16, messages=HELLO, tools=[TOOL])
    calls = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == "tool_use" and [call.input for call in calls] == [{"city": "Ulm"}, {"city": "Bonn"}]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "7"} for call in calls]
    blocks = [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input} for call in calls]
    turns = HELLO + [{"role": "assistant", "content": blocks}, {"role": "user", "content": results}]
    assert text(client.messages.create(model=MODELS[provider], max_tokens=16, messages=turns, tools=[TOOL])) == "7 degrees"


@pytest.mark.parametrize("provider", CAPABLE)
def test_messages_tools_streamed(client, provider):
    with client.messages.stream(model=MODELS[provider], max_tokens=16, messages=HELLO, tools=[TOOL]) as stream:
        message = stream.get_final_message()
    assert [block.input for block in message.content if block.type == "tool_use"] == [{"city": "Ulm"}, {"city": "Bonn"}]


@pytest.mark.parametrize("provider", CAPABLE)
def test_messages_structured(client, provider):
    format = {"type": "json_schema", "schema": SCHEMA}
    message = client.messages.create(model=MODELS[provider], max_tokens=16, messages=HELLO, output_config={"format": format})
    assert json.loads(text(message)) == {"topic": "hi", "urgent": False}


def test_local_tools(client):
    """The local model calls what it must, and goes on when it was answered."""
    tools = [{**TOOL, "input_schema": KIND}]
    ask = {"model": MODELS["local"], "max_tokens": 200, "messages": HELLO, "tools": tools}
    message = client.messages.create(**ask, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert message.stop_reason == "tool_use" and [block.input["city"] in ("Ulm", "Bonn") for block in message.content] == [True]
    with client.messages.stream(**ask, tool_choice={"type": "tool", "name": "get_weather"}) as stream:
        streamed = stream.get_final_message()
    assert [block.input["city"] in ("Ulm", "Bonn") for block in streamed.content if block.type == "tool_use"] == [True]
    call = message.content[0]
    turns = HELLO + [
        {"role": "assistant", "content": [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "7"}]},
    ]
    assert text(client.messages.create(**{**ask, "messages": turns, "max_tokens": 16}))


def test_local_structured(client):
    schema = {**SCHEMA, "properties": {"topic": {"enum": ["hi", "bye"]}, "urgent": {"type": "boolean"}}}
    format = {"type": "json_schema", "schema": schema}
    message = client.messages.create(model=MODELS["local"], max_tokens=64, messages=HELLO, output_config={"format": format})
    assert json.loads(text(message)).keys() == {"topic", "urgent"}


@pytest.mark.parametrize("provider", CAPABLE)
def test_messages_image(client, provider):
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    content = [{"type": "text", "text": "What is this?"}, {"type": "image", "source": source}]
    assert text(client.messages.create(model=MODELS[provider], max_tokens=16, messages=[{"role": "user", "content": content}])) == "a dot"


@pytest.mark.parametrize("provider", CAPABLE)
def test_messages_cached_tokens(client, provider):
    usage = client.messages.create(model=MODELS[provider], max_tokens=16, messages=HELLO).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (4, 16, 5)


@pytest.mark.parametrize("provider", ["anthropic", "gemini", "local", "mock"])
def test_count_tokens(client, provider):
    count = client.messages.count_tokens(model=MODELS[provider], messages=HELLO).input_tokens
    assert count == {"anthropic": 14, "gemini": 14, "mock": 2}.get(provider, count) and count > 0


@pytest.mark.parametrize("provider", ["openai", "azure", "row"])
def test_count_tokens_is_refused_where_nobody_counts(client, provider):
    with pytest.raises(anthropic.BadRequestError, match="cannot be counted"):
        client.messages.count_tokens(model=MODELS[provider], messages=HELLO)


def test_models(client):
    names = [model.id for model in client.models.list()]
    assert MODELS["anthropic"] in names and MODELS["local"] in names
    assert client.models.retrieve(MODELS["local"]).type == "model"


def test_thinking_comes_back_signed_and_is_sent_again(client, refit):
    thinking = {"type": "adaptive"}
    message = client.messages.create(model=MODELS["anthropic"], max_tokens=2000, messages=HELLO, thinking=thinking)
    assert message.content[0].type == "thinking" and message.content[0].signature == "c2ln"
    turns = HELLO + [{"role": "assistant", "content": [block.model_dump() for block in message.content]}, {"role": "user", "content": "Again."}]
    with client.messages.stream(model=MODELS["anthropic"], max_tokens=2000, messages=turns, thinking=thinking) as stream:
        again = stream.get_final_message()
    assert again.content[0].thinking == "Greet them." and again.content[0].signature == "c2ln"
    assert refit.vendors.seen[-1].body["messages"][1]["content"][0]["signature"] == "c2ln"


def test_errors_are_the_sdks_own(client, refit):
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="mock/ecco", max_tokens=16, messages=HELLO)
    assert "mock/echo" in str(unknown.value) and unknown.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=refit.url, api_key="rk-no", max_retries=0).messages.create(model="mock/echo", max_tokens=16, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(model="mock/echo", max_tokens=16, messages=HELLO, extra_body={"temperature": 0.5})
    with pytest.raises(anthropic.APIStatusError, match="broke"):
        with client.messages.stream(model="mock/fixed", max_tokens=16, messages=HELLO, extra_body={"mock": {"reply": "a b c", "fail_after": 1}}) as stream:
            stream.get_final_message()


def test_the_earlier_version_takes_sampling(refit):
    client = anthropic.Anthropic(base_url=refit.url, api_key=refit.key, max_retries=0, default_headers={"anthropic-version": "2023-06-01"})
    message = client.messages.create(model=MODELS["anthropic"], max_tokens=16, messages=HELLO, extra_body={"temperature": 0.5})
    assert text(message) == "Hi grüße 🦀"
    seen = refit.vendors.seen[-1]
    assert seen.headers["anthropic-version"] == "2023-06-01" and seen.body["temperature"] == 0.5
