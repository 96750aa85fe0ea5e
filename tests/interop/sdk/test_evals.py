"""OpenAI's Evals API through its Python SDK: an eval, a run over every provider, its output items, cancellation, deletion."""

import json
import time

import openai
import pytest
from conftest import MODELS

ITEMS = [{"item": {"q": "hi", "a": "hi"}}, {"item": {"q": "hi", "a": "something that no model says to hi"}}]
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}, "required": ["q", "a"]}
CUSTOM = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
EXACT = {"type": "string_check", "name": "exact", "input": "{{sample.output_text}}", "reference": "{{item.a}}", "operation": "eq"}
ALWAYS = {"type": "string_check", "name": "always", "input": "{{item.q}}", "reference": "hi", "operation": "ilike"}


@pytest.fixture
def client(refit):
    return openai.OpenAI(base_url=f"{refit.url}/v1", api_key=refit.key, max_retries=0)


def finished(client, eval, run):
    until = time.monotonic() + 120
    while run.status not in ("completed", "failed", "canceled"):
        assert time.monotonic() < until, run
        time.sleep(0.1)
        run = client.evals.runs.retrieve(run.id, eval_id=eval.id)
    return run


@pytest.mark.parametrize("provider", list(MODELS))
def test_whole_flow(client, provider):
    eval = client.evals.create(name="greetings", data_source_config=CUSTOM, testing_criteria=[EXACT, ALWAYS], metadata={"team": "a"})
    assert (eval.object, eval.name, eval.metadata) == ("eval", "greetings", {"team": "a"})
    assert eval.data_source_config.schema_["properties"]["item"] == SCHEMA
    assert [criterion.name for criterion in eval.testing_criteria] == ["exact", "always"]
    source = {"type": "completions", "model": MODELS[provider], "source": {"type": "file_content", "content": ITEMS},
              "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.q}}"}]},
              "sampling_params": {"max_completion_tokens": 16, "temperature": 0}}
    run = finished(client, eval, client.evals.runs.create(eval.id, name="first", data_source=source))
    errors = [item.sample.error for item in client.evals.runs.output_items.list(run.id, eval_id=eval.id) if item.status == "error"]
    assert errors == []
    assert (run.status, run.model, run.eval_id, run.result_counts.total, run.result_counts.errored) == ("completed", MODELS[provider], eval.id, 2, 0)
    assert run.result_counts.failed >= 1 and run.report_url.startswith("http")
    always = run.per_testing_criteria_results[1]
    assert (always.testing_criteria, always.passed, always.failed) == ("always", 2, 0)
    usage = run.per_model_usage[0]
    assert usage.invocation_count == 2 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    items = list(client.evals.runs.output_items.list(run.id, eval_id=eval.id, limit=1))
    assert [item.datasource_item_id for item in items] == [0, 1]
    assert items[1].status == "fail" and items[1].results[0].name == "exact" and items[1].results[0].passed is False
    assert items[0].sample.output[0].content and items[0].sample.input[0].content == "hi"
    assert client.evals.runs.output_items.retrieve(items[0].id, eval_id=eval.id, run_id=run.id).datasource_item == ITEMS[0]["item"]
    assert [found.id for found in client.evals.runs.list(eval.id, status="completed")] == [run.id]
    assert client.evals.runs.delete(run.id, eval_id=eval.id).deleted
    assert client.evals.delete(eval.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.evals.retrieve(eval.id)


def test_files_and_stored_samples(client):
    eval = client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    lines = [{"item": {"q": "?", "a": str(i)}, "sample": {"output_text": str(i % 2)}} for i in range(5)]
    file = client.files.create(file=("items.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="evals")
    source = {"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
    run = finished(client, eval, client.evals.runs.create(eval.id, data_source=source))
    assert (run.result_counts.passed, run.result_counts.failed, run.per_model_usage) == (2, 3, [])


def test_names_change_and_lists_page(client):
    evals = [client.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT]) for _ in range(3)]
    changed = client.evals.update(evals[0].id, name="other", metadata={"x": "y"})
    assert (changed.name, changed.metadata) == ("other", {"x": "y"})
    listed = [found.id for found in client.evals.list(limit=2, order="desc")]
    assert listed[:3] == [found.id for found in reversed(evals)]
    with pytest.raises(openai.BadRequestError) as refused:
        client.evals.create(data_source_config=CUSTOM, testing_criteria=[{"type": "python", "name": "p", "source": "pass"}])
    assert refused.value.param == "testing_criteria[0].type"


def test_azure(refit):
    azure = openai.AzureOpenAI(azure_endpoint=refit.url, api_key=refit.key, api_version="2025-04-01-preview", max_retries=0)
    eval = azure.evals.create(data_source_config=CUSTOM, testing_criteria=[EXACT])
    assert azure.evals.retrieve(eval.id).id == eval.id
