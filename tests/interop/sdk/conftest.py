"""The running binary in front of [`vendors`] and the real models. `REFIT_BINARY`, `REFIT_TEST_MODEL` and `REFIT_TEST_EMBEDDER` are set by
`./test interop`."""

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass

import pytest
from vendors import Vendors

MODEL = "smollm2-135m-instruct"
EMBEDDER = "all-minilm-l6-v2"
# Provider -> a model there. `row` is a row of the OpenAI-compatible table.
MODELS = {
    "openai": "openai/gpt-4o-mini",
    "azure": "azure/gpt-4o",
    "anthropic": "anthropic/claude-opus-5-5",
    "gemini": "gemini/gemini-3-flash",
    "row": "groq/llama-3.3-70b",
    "local": f"local/{MODEL}",
    "mock": "mock/echo",
}
# Providers that answer tools and structured output with what the tests play to them; the local model answers for itself, in tests of its own,
# and the mock has no such thing.
CAPABLE = ["openai", "azure", "anthropic", "gemini", "row"]


PROMPTS = {
    "greet": "---\nmodel: mock/echo\ninput:\n  schema:\n    who: string\n---\nHello {{who}}!\n",
    "chat": '---\nmodel: mock/echo\n---\n{{role "system"}}Be {{tone}}.\n{{history}}{{role "user"}}{{question}}',
    "look": "---\nmodel: mock/echo\n---\nCompare {{what}}: {{media url=picture}}{{document}}",
}


@dataclass
class Refit:
    url: str
    key: str
    # A key that may also read prompts.
    reader: str
    vendors: Vendors


def embedder_folder(directory):
    """The embedding model's files under their names."""
    with open(os.environ["REFIT_TEST_EMBEDDER"]) as file:
        files = json.load(file)["files"]
    folder = os.path.join(directory, "embedder")
    for name, path in files.items():
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        os.symlink(path, os.path.join(folder, name))
    return folder


@pytest.fixture(scope="session")
def refit():
    binary, model = os.environ["REFIT_BINARY"], os.environ["REFIT_TEST_MODEL"]
    vendors = Vendors()
    environment = {**os.environ, **{f"{name.upper()}_TEST_KEY": key for name, key in vendors.keys.items()}}
    with tempfile.TemporaryDirectory() as directory:
        table = ["[server]\nport = 0\n"]
        for name in vendors.keys:
            more = 'api_version = "2024-10-21"\n' if name == "azure" else ""
            table.append(f'[providers.{name}]\nbase_url = "{vendors.url(name)}"\napi_key = {{ env = "{name.upper()}_TEST_KEY" }}\n{more}')
        config = os.path.join(directory, "refit.toml")
        with open(config, "w") as file:
            file.write("\n".join(table))
        base = [binary, "--data-dir", os.path.join(directory, "data"), "--config", config]
        run = lambda *arguments: subprocess.run([*base, *arguments], check=True, capture_output=True, text=True, env=environment).stdout
        run("model", "pull", model, "--name", MODEL)
        run("model", "pull", embedder_folder(directory), "--name", EMBEDDER)
        for name, text in PROMPTS.items():
            prompt = os.path.join(directory, f"{name}.prompt")
            with open(prompt, "w") as file:
                file.write(text)
            run("prompt", "publish", prompt)
        run("prompt", "promote", "greet@1", "production")
        key, reader = (json.loads(run("key", "create", role, "--role", role, "--json"))["key"] for role in ("app", "viewer"))
        server = subprocess.Popen([*base, "serve"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        url = None
        for line in server.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                url = found.group(0)
                break
        assert url, "refit did not start"
        try:
            yield Refit(url, key, reader, vendors)
        finally:
            server.terminate()
            server.wait(30)
            vendors.close()
    assert not vendors.wrong, "\n\n".join(vendors.wrong)


@pytest.fixture(autouse=True)
def upstream_is_content(refit, request):
    """Whatever a test asked for, every request that reached a vendor had that vendor's key, and the vendor's types took it."""
    before = len(refit.vendors.wrong)
    yield
    wrong = refit.vendors.wrong[before:]
    assert not wrong, "\n\n".join(wrong)
