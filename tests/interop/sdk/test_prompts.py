"""Prompts of the library through other people's SDKs: OpenAI's, LiteLLM's fields in `extra_body`, Langfuse's `get_prompt`."""

import openai
import pytest
from langfuse import Langfuse
from langfuse.api import NotFoundError

ADA = {"who": "Ada"}


@pytest.fixture
def client(refit):
    return openai.OpenAI(base_url=f"{refit.url}/v1", api_key=refit.key, max_retries=0)


@pytest.fixture
def langfuse(refit):
    client = Langfuse(public_key="pk-lf-any", secret_key=refit.reader, base_url=refit.url, tracing_enabled=False)
    yield client
    client.shutdown()


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": {"id": "greet", "label": "production", "variables": ADA}},
        {"prompt": {"id": "greet", "version": "1", "variables": {"who": {"type": "input_text", "text": "Ada"}}}},
        {"prompt_id": "greet", "prompt_version": 1, "prompt_variables": ADA},
    ],
)
def test_chat_completions_call_a_prompt(client, body):
    reply = client.chat.completions.create(model="greet", messages=[], extra_body=body)
    assert reply.choices[0].message.content == "Hello Ada!" and reply.model_extra["prompt"]["version"] == "1"
    chunks = client.chat.completions.create(model="greet", messages=[], extra_body=body, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello Ada!"


def test_responses_call_a_prompt_with_text_image_and_file(client):
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
    document = {"type": "input_file", "file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}
    variables = {"picture": picture, "document": document, "what": {"type": "input_text", "text": "them"}}
    reply = client.responses.create(prompt={"id": "look", "variables": variables})
    assert reply.output_text == "Compare them: " and (reply.prompt.id, reply.prompt.version) == ("look", "1")


def test_an_unknown_label_is_an_error_of_the_caller(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.responses.create(prompt={"id": "greet", "label": "staging", "variables": ADA})
    assert refused.value.param == "prompt.label"


def test_langfuse_gets_a_text_prompt_and_fills_it_in(langfuse):
    prompt = langfuse.get_prompt("greet", cache_ttl_seconds=0, max_retries=0)
    assert (prompt.version, prompt.labels, prompt.config["model"]) == (1, ["production", "latest"], "mock/echo")
    assert prompt.prompt == "Hello {{who}}!" and prompt.compile(who="Ada") == "Hello Ada!"
    assert langfuse.get_prompt("greet", version=1, max_retries=0).version == 1
    assert [meta.name for meta in langfuse.api.prompts.list().data] == ["chat", "greet", "look"]


def test_langfuse_gets_a_chat_prompt_with_its_placeholder(langfuse):
    prompt = langfuse.get_prompt("chat", type="chat", label="latest", cache_ttl_seconds=0, max_retries=0)
    filled = prompt.compile(tone="kind", history=[{"role": "user", "content": "before"}], question="why?")
    expected = [("system", "Be kind.\n"), ("user", "before"), ("user", "why?")]
    assert [(message["role"], message["content"]) for message in filled] == expected


def test_langfuse_is_told_what_it_cannot_have(langfuse):
    with pytest.raises(NotFoundError):
        langfuse.get_prompt("greet", label="staging", cache_ttl_seconds=0, max_retries=0)
    with pytest.raises(Exception, match="cannot be filled in by a client"):
        langfuse.get_prompt("look", label="latest", cache_ttl_seconds=0, max_retries=0)
