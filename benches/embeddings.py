"""embeddings: all-MiniLM-L6-v2 beside onnxruntime in one run, on the same texts (questions of GSM8K, some 70 tokens each), 32 in a batch,
two threads, tokenization and pooling on both sides; rounds alternate, medians over the rounds. Ours is asked over HTTP, through the
gateway, by one caller. The vectors are compared. `./bench embeddings [ROUNDS]`. Needs ../shared/data/gsm8k."""

import base64
import http.client
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile
import time

from harness import BINARY, CACHE, figure, first_answer, free_port, note, result, stop

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME, BATCH, TEXTS = "all-minilm-l6-v2", 32, 512
VENV = CACHE / "venv-interop"
PACKAGES = ["torch", "transformers", "peft", "safetensors", "gguf"], ["onnxruntime", "onnx", "onnxscript"]


def peer_python():
    """A Python with onnxruntime, and torch to make the peer's model."""
    python = VENV / "bin/python"
    if subprocess.run([python, "-c", "import torch, transformers, onnxruntime, onnxscript"], capture_output=True).returncode == 0 if python.exists() else False:
        return python
    note("installing onnxruntime and torch")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    for packages in PACKAGES:
        subprocess.run([VENV / "bin/pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
    return python


def texts():
    file = ROOT.parent / "shared/data/gsm8k/test.jsonl"
    if not file.exists():
        raise SystemExit(f"{file} is missing: the texts come from there")
    return [json.loads(line)["question"] for line in file.read_text().splitlines()[:TEXTS]]


def folder(directory):
    """The model's files under their names, pulled into the cache once."""
    common = [BINARY, "--data-dir", CACHE / "data", "model"]
    subprocess.run([*common, "pull", NAME], check=True, stdout=sys.stderr)
    shown = json.loads(subprocess.run([*common, "show", NAME, "--json"], check=True, capture_output=True, text=True).stdout)
    for name, path in shown["files"].items():
        target = pathlib.Path(directory, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)


class Ours:
    """The gateway with the model, two threads."""

    def __init__(self, directory, model):
        self.port = free_port()
        pathlib.Path(directory, "refit.toml").write_text("[local]\nthreads = 2\n")
        common = [BINARY, "--data-dir", directory, "--config", f"{directory}/refit.toml"]
        subprocess.run([*common, "model", "pull", model, "--name", NAME], check=True, stdout=sys.stderr)
        created = subprocess.run([*common, "key", "create", "bench", "--json"], check=True, capture_output=True, text=True)
        key = json.loads(created.stdout)["key"]
        self.headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        self.process = subprocess.Popen([*common, "serve", "--port", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        first_answer(self.port, time.perf_counter())
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def batch(self, texts):
        body = json.dumps({"model": f"local/{NAME}", "input": texts, "encoding_format": "base64"})
        self.connection.request("POST", "/v1/embeddings", body, self.headers)
        reply = json.loads(self.connection.getresponse().read())
        return [row["embedding"] for row in reply["data"]]

    def measure(self, texts):
        """Sentences per second, and the vectors."""
        vectors = []
        began = time.perf_counter()
        for at in range(0, len(texts), BATCH):
            vectors += self.batch(texts[at:at + BATCH])
        seconds = time.perf_counter() - began
        return len(texts) / seconds, [struct.unpack(f"<{len(raw) // 4}f", raw) for raw in map(base64.b64decode, vectors)]


class Theirs:
    """A process that measures once for every line on its standard input."""

    def __init__(self, python, model, directory, texts):
        file = pathlib.Path(directory, "texts.json")
        file.write_text(json.dumps(texts))
        command = [python, pathlib.Path(__file__).parent / "embeddings_onnx.py", model, CACHE / "minilm-l6-v2.onnx", file, str(BATCH)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self.process.stdout.readline())

    def measure(self):
        print(file=self.process.stdin, flush=True)
        row = json.loads(self.process.stdout.readline())
        return row["rate"], row["vectors"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)


def furthest(a, b):
    """Largest difference of an element."""
    return max(abs(x - y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


def main():
    sample = texts()
    python = peer_python()
    with tempfile.TemporaryDirectory() as directory:
        model = pathlib.Path(directory, "model")
        folder(model)
        theirs, ours = Theirs(python, model, directory, sample), Ours(directory, model)
        rows, ratios = {"refit": [], "onnxruntime": []}, []
        try:
            mine, others = ours.measure(sample)[1], theirs.measure()[1]
            for round in range(ROUNDS):
                rows["refit"].append(ours.measure(sample)[0])
                rows["onnxruntime"].append(theirs.measure()[0])
                ratios.append(rows["refit"][-1] / rows["onnxruntime"][-1])
                note(f"round {round + 1} of {ROUNDS}: {rows['refit'][-1]:.0f} and {rows['onnxruntime'][-1]:.0f} sentences a second")
        finally:
            stop(ours.process)
            theirs.close()
    difference = furthest(mine, others)
    ratio = figure(ratios, 3)["median"]
    figures = {name: figure(values, 1) for name, values in rows.items()}
    digits = math.floor(-math.log10(max(difference, 1e-12)))
    result("embeddings", {**figures, **theirs.about, "largest_difference": difference}, {"vs_onnxruntime": ratio},
           {"vs_onnxruntime": (ratio, ">=", 1.2), "digits": (digits, ">=", 5)})


if __name__ == "__main__":
    main()
