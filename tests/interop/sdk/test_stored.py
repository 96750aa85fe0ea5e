"""The OpenAI Python SDK: stored completions, and files for fine-tuning."""

import openai
import pytest


@pytest.fixture
def client(refit):
    return openai.OpenAI(base_url=f"{refit.url}/v1", api_key=refit.key, max_retries=0)


def stored(client, text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="mock/echo", messages=messages, store=True, **more)


def test_stored_completions(client):
    made = [stored(client, f"stored {i}", metadata={"topic": "stored", "n": str(i)}) for i in range(3)]
    listed = list(client.chat.completions.list(metadata={"topic": "stored"}, limit=2))
    assert [one.id for one in listed] == [one.id for one in made], "the pages follow each other"
    newest = client.chat.completions.list(metadata={"topic": "stored"}, order="desc", limit=1)
    assert newest.data[0].id == made[2].id and newest.has_more
    one = client.chat.completions.retrieve(made[0].id)
    assert one.choices[0].message.content == made[0].choices[0].message.content and one.metadata == {"topic": "stored", "n": "0"}
    asked = list(client.chat.completions.messages.list(made[0].id))
    assert [(message.role, message.content) for message in asked] == [("user", "stored 0")] and asked[0].id
    changed = client.chat.completions.update(made[0].id, metadata={"topic": "other"})
    assert changed.metadata == {"topic": "other"}
    assert client.chat.completions.delete(made[1].id).deleted
    assert [one.id for one in client.chat.completions.list(metadata={"topic": "stored"})] == [made[2].id]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made[1].id)


def test_stored_stream(client):
    messages = [{"role": "user", "content": "in pieces"}]
    options = {"metadata": {"topic": "streamed"}, "store": True, "stream": True}
    chunks = list(client.chat.completions.create(model="mock/echo", messages=messages, **options))
    (one,) = client.chat.completions.list(metadata={"topic": "streamed"})
    assert one.id == chunks[0].id and one.choices[0].message.content == "in pieces"


def test_files_for_fine_tuning(client):
    good = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    made = client.files.create(file=("talks.jsonl", good), purpose="fine-tune")
    assert made.purpose == "fine-tune" and client.files.delete(made.id).deleted
    with pytest.raises(openai.BadRequestError, match="line 2"):
        client.files.create(file=("talks.jsonl", good + b'{"messages": 1}\n'), purpose="fine-tune")
