"""Fine-tuning of local models through the OpenAI Python SDK, unchanged: files, jobs, events, checkpoints, the model that comes out."""

import json
import time

import openai
import pytest
from conftest import EMBEDDER, MODEL, MODELS

TALKS = [
    ("Where is my order?", "order_status"),
    ("Cancel it please", "cancel_order"),
    ("The kettle leaks", "damaged_item"),
    ("I was charged twice", "billing"),
]


@pytest.fixture
def client(refit):
    return openai.OpenAI(base_url=f"{refit.url}/v1", api_key=refit.key, max_retries=0)


def upload(client, talks):
    lines = [json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}) for question, answer in talks]
    file = client.files.create(file=("train.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
    assert client.files.wait_for_processing(file.id).status == "processed"
    return file.id


def finished(client, job):
    until = time.monotonic() + 240
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < until, job
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


def say(client, model, text):
    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], max_tokens=8, temperature=0)
    return reply.choices[0].message.content


def test_a_local_model_is_fine_tuned_and_used(client):
    training, validation = upload(client, TALKS), upload(client, TALKS[:1])
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 10, "batch_size": 2, "learning_rate_multiplier": "auto"}}}
    job = client.fine_tuning.jobs.create(
        model=f"local/{MODEL}", training_file=training, validation_file=validation, suffix="SDK test", seed=5, method=method, metadata={"team": "a"}
    )
    assert (job.object, job.seed, job.metadata, job.fine_tuned_model) == ("fine_tuning.job", 5, {"team": "a"}, None)
    job = finished(client, job)
    assert (job.status, job.error, job.hyperparameters.n_epochs) == ("succeeded", None, 10), job
    assert job.fine_tuned_model == f"local/{MODEL}:sdk-test" and job.trained_tokens > 0
    assert say(client, job.fine_tuned_model, TALKS[1][0]) == TALKS[1][1]
    assert job.fine_tuned_model in [model.id for model in client.models.list()]

    # The pages are followed to the end.
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=7))
    steps = sorted(event.data["step"] for event in events if event.type == "metrics")
    assert steps == list(range(1, 21)) and any("completed" in event.message for event in events)
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [point.fine_tuned_model_checkpoint for point in checkpoints] == [job.fine_tuned_model]
    assert checkpoints[0].metrics.valid_loss is not None
    table = client.files.content(job.result_files[0]).text
    assert table.splitlines()[0].startswith("step,train_loss") and len(table.splitlines()) == 21
    assert job.id in [found.id for found in client.fine_tuning.jobs.list(limit=1)]
    assert [found.id for found in client.fine_tuning.jobs.list(metadata={"team": "a"})] == [job.id]
    client.files.delete(training)


def test_pause_resume_cancel(client):
    job = client.fine_tuning.jobs.create(model=f"local/{MODEL}", training_file=upload(client, TALKS), hyperparameters={"n_epochs": 60, "batch_size": 1})
    paused = client.fine_tuning.jobs.pause(job.id)
    while paused.status == "pausing":
        time.sleep(0.1)
        paused = client.fine_tuning.jobs.retrieve(job.id)
    assert paused.status == "paused" and paused.finished_at is None
    assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    client.fine_tuning.jobs.cancel(job.id)
    job = finished(client, job)
    assert (job.status, job.fine_tuned_model) == ("cancelled", None)
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.cancel(job.id)


def test_an_embedding_model_learns_labels(client):
    talks = [("Where is my parcel?", "delivery"), ("It has not arrived", "delivery"), ("I want my money back", "refund"), ("Please refund me", "refund")]
    job = finished(client, client.fine_tuning.jobs.create(model=f"local/{EMBEDDER}", training_file=upload(client, talks), suffix="sdk"))
    assert job.status == "succeeded", job
    assert say(client, job.fine_tuned_model, "my package has not come") == "delivery"


def test_what_is_wrong_is_told_in_openais_shape(client):
    with pytest.raises(openai.BadRequestError, match="line 2") as raised:
        client.files.create(file=("t.jsonl", b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n{}\n'), purpose="fine-tune")
    assert raised.value.param == "file"
    training = upload(client, TALKS)
    with pytest.raises(openai.BadRequestError) as raised:
        client.fine_tuning.jobs.create(model=f"local/{MODEL}", training_file=training, integrations=[{"type": "wandb", "wandb": {"project": "p"}}])
    assert raised.value.param == "integrations"
    with pytest.raises(openai.NotFoundError) as raised:
        client.fine_tuning.jobs.create(model="local/nothing", training_file=training)
    assert raised.value.param == "model"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.create(model="anthropic/claude-opus-5-5", training_file=training)
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob_nothing")


@pytest.mark.parametrize("provider", ["openai", "azure", "row"])
def test_a_providers_model_is_fine_tuned_there(client, refit, provider):
    before = len(refit.vendors.seen)
    job = client.fine_tuning.jobs.create(model=MODELS[provider], training_file=upload(client, TALKS), suffix="there")
    assert (job.status, job.model) == ("queued", MODELS[provider]) and job.id.startswith("ftjob_")
    files, jobs = refit.vendors.seen[before:]
    assert files.path.split("?")[0].endswith("/files") and jobs.path.split("?")[0].endswith("/fine_tuning/jobs")
    # Everything but the names of model and file is as it was sent.
    assert (jobs.body["training_file"], jobs.body["suffix"]) == ("file-vendor", "there")
    assert jobs.body["model"] == MODELS[provider].split("/", 1)[1]
