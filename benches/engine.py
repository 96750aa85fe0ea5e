"""engine: local inference beside llama.cpp (llama-cpp-python, built here for this processor) in one run, on the model as shipped and on
llama.cpp's best form of it (Q4_0): two threads, rounds alternate, medians over the rounds. Prompts of 512 tokens and 128 generated after
them; eight sequences at once, 64 and 64; the same with eight adapters; and eight callers over HTTP, through the gateway. Then Gemma 3 270M (Q4_K_M), as
shipped, both ways.
`./bench engine [ROUNDS]`. Needs the model in the cache (`./test` pulls it) or REFIT_TEST_MODEL."""

import json
import os
import pathlib
import selectors
import socket
import subprocess
import sys
import tempfile
import time

from harness import BINARY, CACHE, figure, first_answer, free_port, model, note, result, stop

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
NAME, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
VENV = CACHE / "venv-llamacpp"
# (prompt, generated, sequences)
LONG, EIGHT = (512, 128, 1), (64, 64, 8)
# What is compared with itself, with adapters and over HTTP, is short and takes turns this often in a round.
AGAIN = 4


def llama_python():
    """A Python with llama-cpp-python, built once for this processor: some six minutes."""
    python = VENV / "bin/python"
    if subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode == 0 if python.exists() else False:
        return python
    note("building llama-cpp-python; this takes some minutes")
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [VENV / "bin/pip", "install", "--quiet"]
    subprocess.run([*pip, "cmake", "ninja", "scikit-build-core", "numpy", "typing-extensions", "diskcache", "jinja2"], check=True, stdout=sys.stderr)
    subprocess.run([*pip, "--no-build-isolation", "--no-deps", "--no-binary", "llama-cpp-python", "llama-cpp-python"], check=True,
                   stdout=sys.stderr, env={**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"})
    return python


def requantised(python, source):
    """llama.cpp's own Q4_0 of the model, made once."""
    target = CACHE / f"{NAME}-q4_0.gguf"
    if not target.exists():
        code = ("import sys, llama_cpp as l; p = l.llama_model_quantize_default_params(); p.ftype = l.LLAMA_FTYPE_MOSTLY_Q4_0\n"
                "p.allow_requantize = True; sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))")
        part = target.with_suffix(".part")
        subprocess.run([python, "-c", code, source, part], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part.rename(target)
    return target


def engine_program():
    """Builds benches/engine.rs; returns the program."""
    command = ["cargo", "bench", "--profile", "ci", "--bench", "engine", "--no-run", "--message-format", "json"]
    built = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "CARGO_TARGET_DIR": str(TARGET)})
    rows = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    return next(row["executable"] for row in rows if row.get("target", {}).get("name") == "engine" and row.get("executable"))


def ours(program, file, plan, adapters="none"):
    """Of two rounds the second: the first warms up, as the peer's does."""
    command = [program, file, *map(str, plan), "2", adapters]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {**row, "prefill": row["prefill"][1:], "decode": row["decode"][1:]}


def theirs(python, file, plan):
    command = [python, pathlib.Path(__file__).parent / "engine_llamacpp.py", file, *map(str, plan)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def request(key, index, tokens):
    """The bytes of a streamed chat request."""
    story = " ".join(f"word{index} {n}" for n in range(8))
    body = json.dumps({"model": f"local/{NAME}", "stream": True, "temperature": 0, "max_tokens": tokens, "stream_options": {"include_usage": True},
                       "messages": [{"role": "user", "content": f"{story}. Write a very long story about a journey by train and describe everything."}]})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def streams(port, requests):
    """Sends all requests at once and keeps (time, bytes) of what comes until all are closed. One thread that looks at nothing: the caller
    shares its two cores with the server."""
    selector, seen = selectors.DefaultSelector(), [[] for _ in requests]
    for sent, parts in zip(requests, seen, strict=True):
        connection = socket.create_connection(("127.0.0.1", port), timeout=300)
        connection.sendall(sent)
        selector.register(connection, selectors.EVENT_READ, parts)
    while selector.get_map():
        for ready, _ in selector.select():
            part = ready.fileobj.recv(1 << 16)
            if part:
                ready.data.append((time.perf_counter(), part))
            else:
                selector.unregister(ready.fileobj)
                ready.fileobj.close()
    return [timed(parts) for parts in seen]


def timed(parts):
    """Times of the first and the last text of a stream, and its tokens."""
    first = last = None
    count = 0
    for at, part in parts:
        for line in part.split(b"\n"):
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                last = at
                first = first or last
            if chunk.get("usage"):
                count = chunk["usage"]["completion_tokens"]
    return first, last, count


class Server:
    """The gateway with the model, two threads."""

    def __init__(self, directory, file):
        self.port = free_port()
        pathlib.Path(directory, "refit.toml").write_text("[local]\nthreads = 2\n")
        common = [BINARY, "--data-dir", directory, "--config", f"{directory}/refit.toml"]
        subprocess.run([*common, "model", "pull", file, "--name", NAME], check=True, stdout=sys.stderr)
        created = subprocess.run([*common, "key", "create", "bench", "--json"], check=True, capture_output=True, text=True)
        self.key = json.loads(created.stdout)["key"]
        began = time.perf_counter()
        self.process = subprocess.Popen([*common, "serve", "--port", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        first_answer(self.port, began)

    def decode(self, sequences, tokens, round):
        seen = streams(self.port, [request(self.key, round * sequences + i, tokens) for i in range(sequences)])
        first, last = max(row[0] for row in seen), max(row[1] for row in seen)
        return sum(row[2] - 1 for row in seen) / (last - first)


def main():
    file, python, program = model(), llama_python(), engine_program()
    best = requantised(python, file)
    rows = {name: [] for name in ("prefill", "decode", "eight", "bf16", "f32", "http", "load", "peak", "llama_prefill", "llama_decode", "llama_eight",
                                  "best_prefill", "best_decode", "best_eight")}

    def plain(_):
        row = ours(program, file, EIGHT)
        rows["load"].append(row["load_s"])
        return row["decode"]

    with tempfile.TemporaryDirectory() as directory:
        server = Server(directory, file)
        try:
            server.decode(1, 8, 1000)
            for round in range(ROUNDS):
                one = ours(program, file, LONG)
                rows["prefill"] += one["prefill"]
                rows["decode"] += one["decode"]
                rows["load"].append(one["load_s"])
                rows["peak"].append(one["peak_mb"])
                for name, source in (("llama", file), ("best", best)):
                    one, eight = theirs(python, source, LONG), theirs(python, source, EIGHT)
                    rows[f"{name}_prefill"].append(one["prefill"])
                    rows[f"{name}_decode"].append(one["decode"])
                    rows[f"{name}_eight"].append(eight["decode"])
                turns = [
                    ("eight", plain),
                    ("bf16", lambda _: ours(program, file, EIGHT, "bf16")["decode"]),
                    ("f32", lambda _: ours(program, file, EIGHT, "f32")["decode"]),
                    ("http", lambda seed: [server.decode(8, 65, seed)]),
                ]
                for again in range(AGAIN):
                    # Each of them follows each other one.
                    for name, measure in turns[again:] + turns[:again]:
                        rows[name] += measure(AGAIN * round + again)
                note(f"round {round + 1} of {ROUNDS}")
        finally:
            stop(server.process)
    gemma(rows, python, program, model(GEMMA, "REFIT_TEST_GEMMA"))
    report(rows)


def gemma(rows, python, program, file):
    for _ in range(ROUNDS):
        one, other = ours(program, file, LONG), theirs(python, file, LONG)
        for name, values in (("prefill", one["prefill"]), ("decode", one["decode"]), ("load", [one["load_s"]]), ("peak", [one["peak_mb"]]),
                             ("llama_prefill", [other["prefill"]]), ("llama_decode", [other["decode"]])):
            rows.setdefault(f"gemma_{name}", []).extend(values)


def report(rows):
    figures = {name: figure(values, 3 if name.endswith("load") else 1) for name, values in rows.items()}
    ratio = lambda a, b: round(figures[a]["median"] / figures[b]["median"], 3)
    ratios = {
        "prefill_vs_llamacpp": ratio("prefill", "llama_prefill"), "prefill_vs_llamacpp_best": ratio("prefill", "best_prefill"),
        "decode_vs_llamacpp": ratio("decode", "llama_decode"), "decode8_vs_llamacpp": ratio("eight", "llama_eight"),
        "adapters8_vs_none": round(1 - ratio("bf16", "eight"), 3), "adapters8_f32_vs_none": round(1 - ratio("f32", "eight"), 3),
        "http_vs_engine": ratio("http", "eight"),
        "gemma_prefill_vs_llamacpp": ratio("gemma_prefill", "gemma_llama_prefill"),
        "gemma_decode_vs_llamacpp": ratio("gemma_decode", "gemma_llama_decode"),
    }
    load, peak = figures["load"]["median"], figures["peak"]["median"]
    result("engine", {**figures, "load_s": load, "peak_mb": peak}, ratios, {
        "prefill_vs_llamacpp": (ratios["prefill_vs_llamacpp"], ">=", 4), "prefill_vs_llamacpp_best": (ratios["prefill_vs_llamacpp_best"], ">=", 1.5),
        "decode_vs_llamacpp": (ratios["decode_vs_llamacpp"], ">=", 1.8), "decode8_vs_llamacpp": (ratios["decode8_vs_llamacpp"], ">=", 3.5),
        "adapters8_vs_none": (ratios["adapters8_vs_none"], "<=", 0.15), "adapters8_f32_vs_none": (ratios["adapters8_f32_vs_none"], "<=", 0.30),
        "http_vs_engine": (ratios["http_vs_engine"], ">=", 0.95), "load_s": (load, "<=", 0.2), "peak_mb": (peak, "<=", 220),
        "gemma_prefill_vs_llamacpp": (ratios["gemma_prefill_vs_llamacpp"], ">", 1), "gemma_decode_vs_llamacpp": (ratios["gemma_decode_vs_llamacpp"], ">", 1),
        "gemma_peak_mb": (figures["gemma_peak"]["median"], "<=", 400),
    })


if __name__ == "__main__":
    main()
