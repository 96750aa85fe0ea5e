"""Files and batches through the OpenAI Python SDK and its Azure client: the whole flow, on every provider, local models included."""

import json
import time

import openai
import pytest
from cases import HELLO, SCHEMA, answers
from conftest import CAPABLE, MODELS


@pytest.fixture
def client(refit):
    return openai.OpenAI(base_url=f"{refit.url}/v1", api_key=refit.key, max_retries=0)


@pytest.fixture
def azure(refit):
    return openai.AzureOpenAI(azure_endpoint=refit.url, api_key=refit.key, api_version="2024-10-21", max_retries=0)


def lines(url, bodies):
    texts = [json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}) for name, body in bodies.items()]
    return "\n".join(texts).encode()


def run(client, url, bodies, **more):
    """Uploads, waits, and returns the batch with its answers and errors by custom id."""
    file = client.files.create(file=("lines.jsonl", lines(url, bodies)), purpose="batch")
    assert client.files.wait_for_processing(file.id).status == "processed"
    batch = client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h", **more)
    until = time.monotonic() + 120
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < until, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    read = lambda id: {line["custom_id"]: line for line in map(json.loads, client.files.content(id).text.splitlines())} if id else {}
    return batch, read(batch.output_file_id), read(batch.error_file_id)


@pytest.mark.parametrize("provider", list(MODELS))
def test_chat(client, provider):
    bodies = {f"c{i}": {"model": MODELS[provider], "messages": HELLO, "max_tokens": 16} for i in range(4)}
    batch, good, bad = run(client, "/v1/chat/completions", bodies, metadata={"run": "7"})
    assert (batch.status, batch.metadata, batch.model, bad) == ("completed", {"run": "7"}, MODELS[provider], {})
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 4, "failed": 0}
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 0
    assert sorted(good) == sorted(bodies)
    for line in good.values():
        reply = openai.types.chat.ChatCompletion.model_validate(line["response"]["body"])
        assert answers(provider, reply.choices[0].message.content) and line["response"]["request_id"].startswith("req_")


@pytest.mark.parametrize("provider", CAPABLE)
def test_responses_with_structure(client, provider):
    body = {"model": MODELS[provider], "input": "hi", "text": {"format": {"type": "json_schema", "name": "t", "schema": SCHEMA, "strict": True}}}
    batch, good, bad = run(client, "/v1/responses", {"a": body})
    assert batch.status == "completed" and not bad
    reply = openai.types.responses.Response.model_validate(good["a"]["response"]["body"])
    assert json.loads(reply.output_text) == {"topic": "hi", "urgent": False}


def test_embeddings(client):
    batch, good, bad = run(client, "/v1/embeddings", {"a": {"model": MODELS["openai"], "input": ["x", "y"]}, "b": {"model": MODELS["anthropic"], "input": "x"}})
    assert (len(good["a"]["response"]["body"]["data"]), bad["b"]["response"]["status_code"]) == (2, 400)
    assert bad["b"]["response"]["body"]["error"]["message"]


@pytest.mark.parametrize("url", ["/chat/completions", "/v1/chat/completions"])
def test_azure_client(azure, url):
    """Azure's batches name their paths without a version."""
    batch, good, bad = run(azure, url, {"a": {"model": MODELS["mock"], "messages": HELLO}})
    assert (batch.status, sorted(good), bad) == ("completed", ["a"], {})


def test_a_wrong_file_names_its_line(client):
    file = client.files.create(file=("lines.jsonl", b'{"custom_id": "a"}\n'), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status == "validating":
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.errors.data[0].line, batch.errors.data[0].param) == ("failed", 1, "method")


def test_cancel_list_and_delete(client):
    slow = {f"c{i}": {"model": "mock/echo", "messages": HELLO, "mock": {"delay_ms": 500}} for i in range(64)}
    file = client.files.create(file=("lines.jsonl", lines("/v1/chat/completions", slow)), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    with pytest.raises(openai.ConflictError):
        client.files.delete(file.id)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    while (batch := client.batches.retrieve(batch.id)).status != "cancelled":
        time.sleep(0.05)
    assert batch.request_counts.completed < 64
    assert batch.id in [found.id for found in client.batches.list(limit=2)], "the pages are followed to the end"
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_files(client):
    made = client.files.create(file=("a.bin", bytes(range(256))), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600})
    assert (made.bytes, made.expires_at) == (256, made.created_at + 3600)
    assert client.files.content(made.id).read() == bytes(range(256))
    assert [file.id for file in client.files.list(purpose="user_data", limit=1)] == [made.id]
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a", b"x"), purpose="fun")
    client.files.delete(made.id)
