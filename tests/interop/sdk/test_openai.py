"""The OpenAI Python SDK: chat completions, completions, responses, embeddings, models, and the Azure client."""

import json
from typing import Literal

import openai
import pytest
from cases import CITY, HELLO, KIND, PNG, SCHEMA, TOOL, answers
from conftest import CAPABLE, EMBEDDER, MODELS
from pydantic import BaseModel

ALL = list(MODELS)
NO = [provider for provider in ALL if provider not in CAPABLE]


class Ticket(BaseModel):
    topic: str
    urgent: bool


class Weather(BaseModel):
    city: str


class Place(BaseModel):
    city: Literal["Ulm", "Bonn"]


@pytest.fixture
def client(refit):
    return openai.OpenAI(base_url=f"{refit.url}/v1", api_key=refit.key, max_retries=0)


@pytest.mark.parametrize("provider", ALL)
def test_chat_plain(client, provider):
    reply = client.chat.completions.create(model=MODELS[provider], messages=HELLO, max_tokens=16, seed=1)
    assert answers(provider, reply.choices[0].message.content)
    assert reply.choices[0].finish_reason in ("stop", "length") and reply.usage.total_tokens > 0


@pytest.mark.parametrize("provider", ALL)
def test_chat_stream(client, provider):
    chunks = list(client.chat.completions.create(model=MODELS[provider], messages=HELLO, max_tokens=16, seed=1, stream=True))
    assert answers(provider, "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in ("stop", "length")
    assert all(chunk.usage is None for chunk in chunks), "usage came although nobody asked for it"


@pytest.mark.parametrize("provider", ALL)
def test_chat_stream_with_usage(client, provider):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODELS[provider], messages=HELLO, max_tokens=16, stream=True, stream_options=options))
    assert chunks[-1].usage.total_tokens > 0 and chunks[-1].choices == []


@pytest.mark.parametrize("provider", CAPABLE)
def test_chat_tools(client, provider):
    """Parallel calls, and the turn that answers them."""
    reply = client.chat.completions.create(model=MODELS[provider], messages=HELLO, tools=[TOOL])
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"city": "Ulm"}, {"city": "Bonn"}]
    results = [{"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 7}'} for call in message.tool_calls]
    turn = HELLO + [message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})] + results
    reply = client.chat.completions.create(model=MODELS[provider], messages=turn, tools=[TOOL])
    assert reply.choices[0].message.content == "7 degrees"


@pytest.mark.parametrize("provider", CAPABLE)
def test_chat_tools_streamed(client, provider):
    with client.chat.completions.stream(model=MODELS[provider], messages=HELLO, tools=[TOOL]) as stream:
        reply = stream.get_final_completion()
    calls = reply.choices[0].message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [("get_weather", {"city": "Ulm"}), ("get_weather", {"city": "Bonn"})]


@pytest.mark.parametrize("provider", CAPABLE)
def test_chat_structured(client, provider):
    reply = client.chat.completions.parse(model=MODELS[provider], messages=HELLO, response_format=Ticket)
    assert reply.choices[0].message.parsed == Ticket(topic="hi", urgent=False)


@pytest.mark.parametrize("provider", ALL)
def test_chat_stream_helper(client, provider):
    """The helper accumulates chunks itself and raises on what does not fit together, and on a reply that was cut off."""
    # What the local model samples comes to an end with its first sentence.
    end = {"seed": 1, "stop": ["\n", ".", "!", "?"]} if provider == "local" else {}
    with client.chat.completions.stream(model=MODELS[provider], messages=HELLO, max_tokens=512, **end) as stream:
        events = list(stream)
        reply = stream.get_final_completion()
    streamed = "".join(event.delta for event in events if event.type == "content.delta")
    assert answers(provider, streamed) and reply.choices[0].message.content == streamed
    assert [event.content for event in events if event.type == "content.done"] == [streamed] and reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("provider", CAPABLE)
def test_chat_stream_helper_structured(client, provider):
    with client.chat.completions.stream(model=MODELS[provider], messages=HELLO, response_format=Ticket) as stream:
        reply = stream.get_final_completion()
    assert reply.choices[0].message.parsed == Ticket(topic="hi", urgent=False)


@pytest.mark.parametrize("provider", CAPABLE)
def test_chat_parse_tools(client, provider):
    """Arguments parsed by the model of their function."""
    reply = client.chat.completions.parse(model=MODELS[provider], messages=HELLO, tools=[openai.pydantic_function_tool(Weather, name="get_weather")])
    assert [call.function.parsed_arguments for call in reply.choices[0].message.tool_calls] == [Weather(city="Ulm"), Weather(city="Bonn")]


# The local model says what it likes, in the form that was asked for: kinds are words of a list, so that it comes to an end.
class Note(BaseModel):
    kind: Literal["greeting", "question", "complaint"]
    urgent: bool


LOCAL = MODELS["local"]
WEATHER = {**TOOL, "function": {**TOOL["function"], "parameters": KIND, "strict": True}}


def fits(call):
    return call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] in ("Ulm", "Bonn")


def test_local_tools(client):
    """Calls, several where they are allowed, and the turn that answers them."""
    ask = {"model": LOCAL, "messages": HELLO, "tools": [WEATHER], "tool_choice": "required", "temperature": 0.9, "max_tokens": 900}
    counts = []
    for seed in range(6):
        reply = client.chat.completions.create(**ask, seed=seed)
        message = reply.choices[0].message
        assert reply.choices[0].finish_reason == "tool_calls" and message.content is None and all(map(fits, message.tool_calls))
        counts.append(len(message.tool_calls))
    assert max(counts) > 1, f"parallel calls were allowed, and there never were any: {counts}"
    one = client.chat.completions.create(**ask, seed=1, parallel_tool_calls=False).choices[0].message
    assert len(one.tool_calls) == 1
    results = [{"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 7}'} for call in one.tool_calls]
    turn = HELLO + [one.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})] + results
    assert client.chat.completions.create(model=LOCAL, messages=turn, tools=[WEATHER], max_tokens=32).choices[0].message.content


def test_local_tools_streamed_and_parsed(client):
    ask = {"model": LOCAL, "messages": HELLO, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}, "max_tokens": 100}
    with client.chat.completions.stream(**ask, tools=[WEATHER]) as stream:
        reply = stream.get_final_completion()
    assert reply.choices[0].finish_reason == "tool_calls" and [fits(call) for call in reply.choices[0].message.tool_calls] == [True]
    reply = client.chat.completions.parse(**ask, tools=[openai.pydantic_function_tool(Place, name="get_weather")])
    assert [call.function.parsed_arguments.city for call in reply.choices[0].message.tool_calls] in (["Ulm"], ["Bonn"])
    # A free choice: text or calls, both whole.
    message = client.chat.completions.create(model=LOCAL, messages=HELLO, tools=[WEATHER], max_tokens=64).choices[0].message
    assert message.content or all(map(fits, message.tool_calls))


def test_local_structured(client):
    for seed in range(4):
        ask = {"model": LOCAL, "messages": HELLO, "response_format": Note, "temperature": 1.0, "seed": seed}
        assert isinstance(client.chat.completions.parse(**ask).choices[0].message.parsed, Note)
        with client.chat.completions.stream(**ask) as stream:
            assert isinstance(stream.get_final_completion().choices[0].message.parsed, Note)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=LOCAL, messages=HELLO, response_format=Note, max_tokens=3)
    assert isinstance(client.responses.parse(model=LOCAL, input="Say hi.", text_format=Note).output_parsed, Note)


def test_local_responses_tools(client):
    tools = [{"type": "function", "name": "get_weather", "parameters": KIND, "strict": True}]
    ask = {"model": LOCAL, "input": "Weather?", "tools": tools, "tool_choice": {"type": "function", "name": "get_weather"}}
    reply = client.responses.create(**ask)
    assert [json.loads(item.arguments)["city"] for item in reply.output if item.type == "function_call"] in (["Ulm"], ["Bonn"])
    events = list(client.responses.create(**ask, stream=True))
    done = [json.loads(event.arguments)["city"] for event in events if event.type == "response.function_call_arguments.done"]
    assert done in (["Ulm"], ["Bonn"]) and events[-1].type == "response.completed"


def test_local_parameters(client):
    """What the SDK types: log probabilities, several choices, biases, penalties, stop texts, and what vLLM adds."""
    ask = {"model": LOCAL, "messages": HELLO, "max_tokens": 12}
    reply = client.chat.completions.create(**ask, n=2, logprobs=True, top_logprobs=2, seed=3, extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1})
    for choice in reply.choices:
        assert b"".join(bytes(row.bytes) for row in choice.logprobs.content).decode() == choice.message.content
        assert all(len(row.top_logprobs) == 2 for row in choice.logprobs.content)
    assert len(reply.choices) == 2
    client.chat.completions.create(**ask, frequency_penalty=1, presence_penalty=-1, logit_bias={"5": -100}, stop=["hello", "\n"])
    for wrong, param in [({"logit_bias": {"999999": 1}}, "logit_bias"), ({"top_logprobs": 2}, "top_logprobs"), ({"extra_body": {"best_of": 2}}, "best_of")]:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**ask, **wrong)
        assert refused.value.param == param


@pytest.mark.parametrize("provider", ["local"])
def test_what_cannot_be_enforced_is_refused_by_name(client, provider):
    schema = {"name": "n", "schema": {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODELS[provider], messages=HELLO, response_format={"type": "json_schema", "json_schema": schema})
    assert refused.value.param == "response_format" and "/properties/a/not" in refused.value.message


@pytest.mark.parametrize("provider", CAPABLE)
def test_chat_image(client, provider):
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]
    reply = client.chat.completions.create(model=MODELS[provider], messages=[{"role": "user", "content": content}])
    assert reply.choices[0].message.content == "a dot"


@pytest.mark.parametrize("provider", CAPABLE)
def test_chat_usage_details(client, provider):
    usage = client.chat.completions.create(model=MODELS[provider], messages=HELLO).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens) == (20, 5, 16)


@pytest.mark.parametrize("provider", ALL)
def test_responses_plain(client, provider):
    reply = client.responses.create(model=MODELS[provider], input="Say hi.", max_output_tokens=16)
    assert answers(provider, reply.output_text) and reply.status in ("completed", "incomplete") and reply.usage.total_tokens > 0


@pytest.mark.parametrize("provider", ALL)
def test_responses_stream(client, provider):
    # As much as the local model needs to end by itself, and the same words each time: the helper knows no response that is incomplete.
    greedy = {"temperature": 0} if provider == "local" else {}
    with client.responses.stream(model=MODELS[provider], input="Say hi.", max_output_tokens=512, **greedy) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        reply = stream.get_final_response()
    assert answers(provider, text) and reply.output_text == text


@pytest.mark.parametrize("provider", CAPABLE)
def test_responses_tools(client, provider):
    tools = [{"type": "function", "name": "get_weather", "description": "Weather of a city", "parameters": CITY, "strict": True}]
    reply = client.responses.create(model=MODELS[provider], input="Weather?", tools=tools)
    calls = [item for item in reply.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Ulm", "Bonn"]
    history = [{"role": "user", "content": "Weather?"}]
    history += [call.model_dump(include={"type", "call_id", "name", "arguments"}) for call in calls]
    history += [{"type": "function_call_output", "call_id": call.call_id, "output": "7"} for call in calls]
    assert client.responses.create(model=MODELS[provider], input=history, tools=tools).output_text == "7 degrees"


@pytest.mark.parametrize("provider", CAPABLE)
def test_responses_tools_streamed(client, provider):
    tools = [{"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}]
    events = list(client.responses.create(model=MODELS[provider], input="Weather?", tools=tools, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    done = [json.loads(event.arguments)["city"] for event in events if event.type == "response.function_call_arguments.done"]
    assert done == ["Ulm", "Bonn"] and events[-1].type == "response.completed"
    assert [item.type for item in events[-1].response.output] == ["function_call", "function_call"]


@pytest.mark.parametrize("provider", CAPABLE)
def test_responses_structured(client, provider):
    assert client.responses.parse(model=MODELS[provider], input="Say hi.", text_format=Ticket).output_parsed == Ticket(topic="hi", urgent=False)


@pytest.mark.parametrize("provider", CAPABLE)
def test_responses_stream_helper_structured_and_tools(client, provider):
    """The helper keeps the response as its events describe it, and parses what it ends with."""
    with client.responses.stream(model=MODELS[provider], input="Say hi.", text_format=Ticket) as stream:
        assert stream.get_final_response().output_parsed == Ticket(topic="hi", urgent=False)
    tool = openai.pydantic_function_tool(Weather, name="get_weather")["function"]
    tools = [{"type": "function", "name": tool["name"], "parameters": tool["parameters"], "strict": True}]
    with client.responses.stream(model=MODELS[provider], input="Weather?", tools=tools) as stream:
        events = list(stream)
        reply = stream.get_final_response()
    snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
    assert '{"city": "Ulm"}' in [snapshot.replace('":"', '": "') for snapshot in snapshots]
    assert [json.loads(item.arguments)["city"] for item in reply.output if item.type == "function_call"] == ["Ulm", "Bonn"]


def test_responses_with_a_prompt_and_neither_model_nor_input(client):
    reply = client.responses.create(prompt={"id": "greet", "version": "1", "variables": {"who": "Ada"}})
    assert reply.output_text == "Hello Ada!" and reply.prompt.id == "greet"
    chat = client.chat.completions.create(model="mock/echo", messages=[], extra_body={"prompt": {"id": "greet", "variables": {"who": "Bo"}}})
    assert chat.choices[0].message.content == "Hello Bo!"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(prompt={"id": "great", "variables": {}})
    assert "greet" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="mock/echo", input="x", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


@pytest.mark.parametrize("provider", ALL)
def test_completions(client, provider):
    reply = client.completions.create(model=MODELS[provider], prompt="Say hi.", max_tokens=16)
    assert answers(provider, reply.choices[0].text)
    chunks = client.completions.create(model=MODELS[provider], prompt="Say hi.", max_tokens=16, stream=True)
    assert answers(provider, "".join(chunk.choices[0].text for chunk in chunks))


@pytest.mark.parametrize("provider", ["openai", "azure", "gemini", "row"])
def test_embeddings(client, provider):
    """The SDK asks for base64 by itself."""
    reply = client.embeddings.create(model=MODELS[provider], input=["a", "b"])
    assert [item.embedding for item in reply.data] == [[0.5, -1.25, 2.0]] * 2
    reply = client.embeddings.create(model=MODELS[provider], input="a", encoding_format="float")
    assert reply.data[0].embedding == [0.5, -1.25, 2.0]


def test_local_embeddings(client):
    """The SDK asks for base64 by itself; the numbers are the same either way."""
    texts = ["How do I reset my password?", "I forgot my password.", "The Moon is far away."]
    vectors = [item.embedding for item in client.embeddings.create(model=f"local/{EMBEDDER}", input=texts).data]
    cosine = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert len(vectors[0]) == 384 and abs(cosine(vectors[0], vectors[0]) - 1) < 1e-5
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.2
    plain = client.embeddings.create(model=f"local/{EMBEDDER}", input=texts[0], encoding_format="float").data[0].embedding
    assert max(abs(x - y) for x, y in zip(plain, vectors[0])) < 1e-6


@pytest.mark.parametrize("provider", ["anthropic", "mock", "local"])
def test_embeddings_are_refused_where_there_are_none(client, provider):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODELS[provider], input="a")
    assert refused.value.code == "unsupported" and refused.value.param == "model"


def test_models(client):
    names = [model.id for model in client.models.list()]
    assert "mock/echo" in names and MODELS["local"] in names
    # The providers' own lists; Azure's classic paths have none of deployments.
    assert {MODELS[provider] for provider in CAPABLE} - {MODELS["azure"]} <= set(names)
    assert client.models.retrieve(MODELS["local"]).id == MODELS["local"]


def test_errors_are_the_sdks_own(client, refit):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="mock/ecco", messages=HELLO)
    assert "mock/echo" in unknown.value.message and unknown.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="mock/echo", messages=HELLO, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{refit.url}/v1", api_key="rk-no", max_retries=0).models.list()
    with pytest.raises(openai.APIError) as broken:
        list(client.chat.completions.create(model="mock/fixed", messages=HELLO, stream=True, extra_body={"mock": {"reply": "a b c", "fail_after": 1}}))
    assert "broke" in broken.value.message


@pytest.fixture
def azure(refit):
    return openai.AzureOpenAI(azure_endpoint=refit.url, api_key=refit.key, api_version="2024-10-21", max_retries=0)


@pytest.mark.parametrize("provider", ALL)
def test_azure_client(azure, provider):
    """The model travels in the path, with its slash encoded; the key as `api-key`."""
    reply = azure.chat.completions.create(model=MODELS[provider], messages=HELLO, max_tokens=16)
    assert answers(provider, reply.choices[0].message.content)
    chunks = azure.chat.completions.create(model=MODELS[provider], messages=HELLO, max_tokens=16, stream=True)
    assert answers(provider, "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))


@pytest.mark.parametrize("provider", CAPABLE)
def test_azure_client_tools_structured_and_embeddings(azure, provider):
    reply = azure.chat.completions.create(model=MODELS[provider], messages=HELLO, tools=[TOOL])
    assert len(reply.choices[0].message.tool_calls) == 2
    assert azure.chat.completions.parse(model=MODELS[provider], messages=HELLO, response_format=Ticket).choices[0].message.parsed.topic == "hi"
    assert azure.responses.create(model=MODELS[provider], input="Say hi.").output_text == "Hi grüße 🦀"
    if provider != "anthropic":
        assert azure.embeddings.create(model=MODELS[provider], input="a").data[0].embedding == [0.5, -1.25, 2.0]


@pytest.mark.parametrize("provider", CAPABLE)
def test_azure_client_tools_streamed(azure, provider):
    with azure.chat.completions.stream(model=MODELS[provider], messages=HELLO, tools=[TOOL]) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Ulm", "Bonn"]


def test_azure_deployment_in_the_client_wins(refit):
    client = openai.AzureOpenAI(azure_endpoint=refit.url, azure_deployment="mock/echo", api_key=refit.key, api_version="2025-04-01-preview", max_retries=0)
    assert client.chat.completions.create(model="whatever", messages=HELLO).choices[0].message.content == "Say hi."


def test_azures_v1_paths(refit):
    client = openai.OpenAI(base_url=f"{refit.url}/openai/v1", api_key=refit.key, max_retries=0)
    assert client.chat.completions.create(model="mock/echo", messages=HELLO).choices[0].message.content == "Say hi."


def test_schema_is_the_callers(client, refit):
    """What a schema says reaches each provider whole."""
    for provider in CAPABLE:
        format = {"type": "json_schema", "json_schema": {"name": "t", "strict": True, "schema": SCHEMA}}
        client.chat.completions.create(model=MODELS[provider], messages=HELLO, response_format=format)
        body = refit.vendors.seen[-1].body
        found = {
            "anthropic": lambda: body["output_config"]["format"]["schema"],
            "gemini": lambda: body["generationConfig"]["responseJsonSchema"],
        }.get(provider, lambda: body["response_format"]["json_schema"]["schema"])()
        assert found == SCHEMA


def test_keys_go_to_their_own_provider_only(client, refit):
    """Each provider listens on a port of its own and answers to a key of its own: what it saw is that key, and neither another's nor the
    caller's. (Every other test holds this of its own requests; here each provider is called, with headers of a caller who meddles.)"""
    meddling = {"x-api-key": refit.key, "x-base-url": "http://127.0.0.1:9", "anthropic-beta": "x"}
    for provider in CAPABLE:
        client.chat.completions.create(model=MODELS[provider], messages=HELLO, extra_headers=meddling)
    assert {seen.provider for seen in refit.vendors.seen} == set(refit.vendors.keys)
    for seen in refit.vendors.seen:
        assert refit.vendors.check_key(seen.provider, seen.headers) is None
        assert refit.key not in json.dumps(seen.headers) + json.dumps(seen.body)
        assert not {"x-base-url", "anthropic-beta"} & set(seen.headers)
