"""tuning-quality: what each method of adaptation reaches on banking77 with ten examples per intent (770 in all) and 500 rows of its test set, and how
long it takes. Every method gets the same rows; seeds change the order and the initial weights, not the rows.

Peers (../shared/PEERS.md; Hugging Face peft and scikit-learn, two threads, one seed): a prompted SmolLM2-135M is right on 2.2 %, a LoRA adapter that
writes the label on 74.4 % after 328 s, logistic regression on frozen MiniLM embeddings on 87.4 % after 5.8 s. Their rows were drawn otherwise: on the
rows used here scikit-learn's is right on 83.8 % (C = 30), which is what the goal for the head is taken from.

usage: ./bench tuning-quality [--data FOLDER] [--seeds N] [--methods prompt,head,lora] [--steps N]"""

import argparse
import collections
import csv
import json
import math
import os
import pathlib
import subprocess
import tempfile
import time

from harness import BINARY, CACHE, figure, note

MODEL, EMBEDDER = "smollm2-135m-instruct", "all-minilm-l6-v2"
PEERS = {"head": {"accuracy": 0.838, "seconds": 5.8}, "lora": {"accuracy": 0.744, "seconds": 328.0}, "prompt": {"accuracy": 0.022, "seconds": 0.0}}


def rows(folder, name):
    with open(folder / name, newline="") as file:
        return [(row[0], row[1]) for row in list(csv.reader(file))[1:]]


def sample(folder):
    """Every third row of an intent, since rows that lie together are alike; the first ten of them."""
    seen, train = collections.Counter(), []
    for text, label in rows(folder, "train.csv"):
        seen[label] += 1
        if seen[label] % 3 == 1 and seen[label] <= 28:
            train.append((text, label))
    return train, rows(folder, "test.csv")[::6][:500]


def write(path, split, pairs):
    lines = [json.dumps({"id": f"{split}{at}", "input": {"text": text}, "target": label}) for at, (text, label) in enumerate(pairs)]
    path.write_text("\n".join(lines) + "\n")


def wilson(right, of, z=1.96):
    share = right / of
    middle, width = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return [(middle - width) / (1 + z * z / of), (middle + width) / (1 + z * z / of)]


class Refit:
    def __init__(self, folder):
        self.folder = folder

    def run(self, *arguments):
        done = subprocess.run([BINARY, "--data-dir", str(self.folder / "data"), *arguments], cwd=self.folder, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise SystemExit(f"refit {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def accuracy(self, target):
        """Right answers of 500, and seconds."""
        suite = {"name": "bank", "dataset": "bank", "split": "test", "targets": [{"name": "t", "parameters": {"temperature": 0, "max_tokens": 24}, **target}],
                 "scorers": ["exact_match"], "gate": [{"metric": "exact_match", "at_least": 0.0}]}
        (self.folder / "suite.yaml").write_text(json.dumps(suite))
        began = time.perf_counter()
        report = json.loads(self.run("eval", "run", "suite.yaml", "--json"))
        metric = report["targets"][0]["metrics"]["exact_match"]
        return metric["mean"], time.perf_counter() - began


def fit(refit, name, recipe):
    (refit.folder / "recipe.yaml").write_text(json.dumps({"name": name, "dataset": "bank", **recipe}))
    began = time.perf_counter()
    result = json.loads(refit.run("tune", "run", "recipe.yaml", "--json"))["result"]
    return result, time.perf_counter() - began


def measure(refit, method, seed, labels, steps):
    """(accuracy, seconds of fitting with everything around it, seconds of measuring)"""
    if method == "prompt":
        (refit.folder / "label.prompt").write_text(
            '---\n---\n{{role "system"}}Sort the message. Answer with one of these labels and nothing else: ' + ", ".join(labels) + '{{role "user"}}{{text}}\n')
        accuracy, seconds = refit.accuracy({"model": f"local/{MODEL}", "prompt": "label.prompt"})
        return accuracy, 0.0, seconds
    (refit.folder / "plain.prompt").write_text("---\n---\n{{text}}\n")
    if method == "head":
        _, took = fit(refit, f"head{seed}", {"method": "head", "model": f"local/{EMBEDDER}", "seed": seed})
        target = {"model": f"local/{EMBEDDER}", "adapter": f"head{seed}"}
    else:
        recipe = {"model": f"local/{MODEL}", "epochs": 4, "batch_size": 8, "seed": seed} | ({"max_steps": steps} if steps else {})
        _, took = fit(refit, f"lora{seed}", recipe)
        target = {"model": f"local/{MODEL}", "adapter": f"lora{seed}"}
    accuracy, seconds = refit.accuracy({**target, "prompt": "plain.prompt"})
    return accuracy, took, seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "../shared/data/banking77")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="prompt,head,lora")
    parser.add_argument("--steps", type=int, default=0, help="bound on the steps of an adapter's training, for a quick look")
    options = parser.parse_args()
    figures, ratios = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        refit = Refit(pathlib.Path(directory))
        train, test = sample(options.data)
        for split, pairs in (("train", train), ("test", test)):
            write(refit.folder / f"{split}.jsonl", split, pairs)
        model, embedder = os.environ.get("REFIT_TEST_MODEL"), os.environ.get("REFIT_TEST_EMBEDDER")
        if model and embedder:
            refit.run("model", "pull", model, "--name", MODEL)
            folder = refit.folder / "embedder"
            for name, path in json.load(open(embedder))["files"].items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(path)
            refit.run("model", "pull", str(folder), "--name", EMBEDDER)
        else:
            refit.run("model", "pull", MODEL)
            refit.run("model", "pull", EMBEDDER)
        refit.run("data", "import", "--name", "bank", "--split-file", "train=train.jsonl", "--split-file", "test=test.jsonl")
        labels = sorted({label for _, label in train})
        for method in options.methods.split(","):
            found = []
            # A prompt has no seed, and the head's objective is convex: its seed moves nothing but the parts of the cross-validation.
            for seed in range(1, (1 if method == "prompt" else options.seeds) + 1):
                accuracy, took, measuring = measure(refit, method, seed, labels, options.steps)
                low, high = wilson(round(accuracy * len(test)), len(test))
                note(f"{method}, seed {seed}: {100 * accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f}) in {took:.1f} s of fitting; measured in {measuring:.1f} s")
                found.append((accuracy, took, [low, high]))
            shares = [accuracy for accuracy, _, _ in found]
            figures[method] = {"accuracy": figure(shares, 4), "ci95": [round(bound, 4) for bound in found[0][2]], "seconds": figure([took for _, took, _ in found], 1)}
            peer = PEERS[method]
            ratios[f"{method}_accuracy_vs_peer"] = round(figures[method]["accuracy"]["median"] / peer["accuracy"], 3)
            if peer["seconds"]:
                ratios[f"{method}_seconds_vs_peer"] = round(figures[method]["seconds"]["median"] / peer["seconds"], 3)
    reached = lambda method: figures[method]["ci95"][1] >= PEERS[method]["accuracy"]
    goals = {f"{method}_reaches_peer_within_interval": reached(method) for method in figures}
    goals |= {f"{name}_under_half": ratio < 0.5 for name, ratio in ratios.items() if name.endswith("seconds_vs_peer")}
    print(json.dumps({"name": "tuning-quality", "figures": figures, "ratios": ratios, "goals": goals, "met": all(goals.values())}))


if __name__ == "__main__":
    main()
