"""The Node SDKs: `node/cases.mjs` names its cases and runs them all at once; here each is a test of its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import MODELS

SCRIPT = str(Path(__file__).parent / "node" / "cases.mjs")


def node(*arguments, **environment):
    done = subprocess.run(["node", SCRIPT, *arguments], capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def results(refit):
    return node(REFIT_URL=refit.url, REFIT_KEY=refit.key, REFIT_MODELS=json.dumps(MODELS))


@pytest.mark.parametrize("case", node("--list"))
def test_node(results, case):
    assert results[case] is None, results[case]
