"""LangChain's OpenAI and Anthropic chat models, and its embeddings."""

import functools
import operator
from typing import Literal

import pytest
from cases import SCHEMA, answers
from conftest import CAPABLE, MODELS
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

ALL = list(MODELS)


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return "7"


def openai_model(refit, provider, **more):
    return ChatOpenAI(base_url=f"{refit.url}/v1", api_key=refit.key, model=MODELS[provider], max_retries=0, **{"max_tokens": 16, **more})


def anthropic_model(refit, provider, **more):
    return ChatAnthropic(base_url=refit.url, api_key=refit.key, model=MODELS[provider], max_retries=0, **{"max_tokens": 16, **more})


BOTH = pytest.mark.parametrize("model", [openai_model, anthropic_model])


@BOTH
@pytest.mark.parametrize("provider", ALL)
def test_invoke_and_stream(refit, model, provider):
    chat = model(refit, provider)
    assert answers(provider, chat.invoke("Say hi.").text)
    assert answers(provider, "".join(chunk.text for chunk in chat.stream("Say hi.")))


@BOTH
@pytest.mark.parametrize("provider", CAPABLE)
def test_tools(refit, model, provider):
    calls = model(refit, provider).bind_tools([get_weather]).invoke("Weather?").tool_calls
    assert [(call["name"], call["args"]) for call in calls] == [("get_weather", {"city": "Ulm"}), ("get_weather", {"city": "Bonn"})]


@BOTH
@pytest.mark.parametrize("provider", CAPABLE)
def test_tools_streamed(refit, model, provider):
    """Calls come in pieces; LangChain adds them up."""
    chunks = list(model(refit, provider).bind_tools([get_weather]).stream("Weather?"))
    whole = functools.reduce(operator.add, chunks)
    assert len(chunks) > 1
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("get_weather", {"city": "Ulm"}), ("get_weather", {"city": "Bonn"})]


@BOTH
@pytest.mark.parametrize("provider", CAPABLE)
def test_structured(refit, model, provider):
    schema = {"title": "ticket", "description": "A ticket", **SCHEMA}
    assert model(refit, provider).with_structured_output(schema, method="json_schema").invoke("Say hi.") == {"topic": "hi", "urgent": False}


@tool
def choose_city(city: Literal["Ulm", "Bonn"]) -> str:
    """Chooses a city."""
    return "7"


@BOTH
def test_local_tools_and_structure(refit, model):
    bound = model(refit, "local").bind_tools([choose_city], tool_choice="choose_city").bind(max_tokens=100)
    assert [call["args"]["city"] in ("Ulm", "Bonn") for call in bound.invoke("Weather?").tool_calls] == [True]
    whole = functools.reduce(operator.add, list(bound.stream("Weather?")))
    assert [call["args"]["city"] in ("Ulm", "Bonn") for call in whole.tool_calls] == [True]
    properties = {"topic": {"enum": ["hi", "bye"]}, "urgent": {"type": "boolean"}}
    schema = {"title": "ticket", "description": "A ticket", **SCHEMA, "properties": properties}
    assert model(refit, "local", max_tokens=64).with_structured_output(schema, method="json_schema").invoke("Say hi.").keys() == {"topic", "urgent"}


@pytest.mark.parametrize("provider", ["openai", "row"])
def test_responses_api(refit, provider):
    assert openai_model(refit, provider, use_responses_api=True).invoke("Say hi.").text == "Hi grüße 🦀"


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_embeddings(refit, provider):
    made = OpenAIEmbeddings(base_url=f"{refit.url}/v1", api_key=refit.key, model=MODELS[provider], check_embedding_ctx_length=False)
    assert made.embed_query("a") == [0.5, -1.25, 2.0]
