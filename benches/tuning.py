"""LoRA training beside Hugging Face peft (torch, transformers): SmolLM2-135M, rank 8 on all seven projections, 4 x 256 tokens, every position
labelled, AdamW, two threads, the same ids and the same first values of A.

Speed: both stay loaded and take turns, so that both see the same machine; peft runs at its best, autocast to bfloat16. Curve: 50 steps
against peft in f32, which takes minutes and is kept in the cache by versions and model; `--curve` makes it anew, `--no-curve` leaves it out.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile

from harness import CACHE, figure, model, note, result

ROUNDS, STEPS, BATCH, LENGTH, CURVE = 4, 3, 4, 256, 50
PACKAGES = ["torch", "transformers", "peft", "safetensors", "gguf"]


def python():
    """Python of a venv with the peers, made on first use; the same one that ./test uses."""
    place = CACHE / "venv-interop"
    if subprocess.run([place / "bin/python", "-c", f"import {', '.join(PACKAGES)}"], capture_output=True).returncode != 0:
        subprocess.run([sys.executable, "-m", "venv", place], check=True, stdout=sys.stderr)
        subprocess.run([place / "bin/pip", "install", "-q", *PACKAGES], check=True, stdout=sys.stderr)
    return str(place / "bin/python")


def program():
    """The benchmark's own binary, with our side of it."""
    if "REFIT_TUNING_BENCH" in os.environ:
        return os.environ["REFIT_TUNING_BENCH"]
    built = subprocess.run(["cargo", "bench", "--profile", "ci", "--bench", "tuning", "--no-run", "--message-format", "json"], check=True, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "tuning")


class Worker:
    """A loaded trainer that takes steps when it is told to."""

    def __init__(self, command):
        environment = {**os.environ, "RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)

    def steps(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} ended: {self.process.wait()}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def ours(binary, file, folder):
    return Worker([binary, file, str(BATCH), str(LENGTH), folder, "rounded"])


def theirs(interpreter, file, folder, mode):
    return Worker([interpreter, "tests/interop/peft_train.py", file, folder, str(BATCH), str(LENGTH), mode])


def speed(file, binary, interpreter, folder):
    us, them = ours(binary, file, folder), theirs(interpreter, file, folder, "autocast")
    us.steps(1), them.steps(1)
    rows = {"tok_s": [], "peft_tok_s": []}
    for round in range(ROUNDS):
        for name, worker in (("tok_s", us), ("peft_tok_s", them)):
            done = worker.steps(STEPS)
            rows[name] += [BATCH * LENGTH / seconds for seconds in done["seconds"]]
            rows[name.replace("tok_s", "peak_mb")] = [done["peak_mb"]]
        note(f"round {round + 1} of {ROUNDS}: {rows['tok_s'][-1]:.0f} tok/s, peft {rows['peft_tok_s'][-1]:.0f} tok/s")
    us.close(), them.close()
    return rows


def curve(file, binary, interpreter, folder, fresh):
    """Largest difference of 50 losses from peft's in f32."""
    versions = subprocess.run([interpreter, "-c", f"import {', '.join(PACKAGES)}; print(torch.__version__, transformers.__version__, peft.__version__)"],
                              check=True, capture_output=True, text=True).stdout
    with open(file, "rb") as handle, open(f"{folder}/adapter_model.safetensors", "rb") as adapter:
        key = hashlib.sha256(versions.encode() + handle.read() + adapter.read()).hexdigest()[:16]
    kept = CACHE / f"peft-curve-{key}.json"
    if fresh or not kept.exists():
        note(f"{CURVE} steps of peft in f32: some minutes")
        them = theirs(interpreter, file, folder, "f32")
        kept.write_text(json.dumps(them.steps(CURVE)["losses"]))
        them.close()
    us = ours(binary, file, folder)
    losses = us.steps(CURVE)["losses"]
    us.close()
    return max(abs(a - b) for a, b in zip(losses, json.loads(kept.read_text()), strict=True))


def main():
    arguments = sys.argv[1:]
    file, binary, interpreter = model(), program(), python()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([interpreter, "tests/interop/peft_train.py", file, folder, str(BATCH), str(LENGTH), "write"], check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
        rows = speed(file, binary, interpreter, folder)
        difference = None if "--no-curve" in arguments else curve(file, binary, interpreter, folder, "--curve" in arguments)
    report(rows, difference)


def report(rows, difference):
    tokens, peer = figure(rows["tok_s"], 1), figure(rows["peft_tok_s"], 1)
    peak, peer_peak = rows["peak_mb"][0], rows["peft_peak_mb"][0]
    figures = {"tok_s": tokens, "peft_tok_s": peer, "peak_mb": round(peak), "peft_peak_mb": round(peer_peak),
               "loss_curve_max_abs_diff": None if difference is None else round(difference, 5)}
    ratios = {"tok_s_vs_peft_best": round(tokens["median"] / peer["median"], 3), "peak_mem_vs_peft_best": round(peak / peer_peak, 3)}
    result("tuning", figures, ratios, {
        "tok_s_vs_peft_best": (ratios["tok_s_vs_peft_best"], ">=", 2), "peak_mem_vs_peft_best": (ratios["peak_mem_vs_peft_best"], "<=", 0.4),
        "loss_curve_max_abs_diff": (difference, "<=", 0.02),
    })


if __name__ == "__main__":
    main()
