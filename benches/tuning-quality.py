"""tuning-quality: what each method of adaptation reaches, and how long it takes, beside what its peer took.

Sorting: banking77 with ten examples per intent (770 in all) and 500 rows of its test set, the rows of the peers' script (Python's `random` with its
seeds): a prompt, a head on MiniLM, a low-rank adapter that writes the label, a classifier on the chat model. Extraction: 600 messages of our own
(`extraction.py`) to JSON, 200 to test, by a prompt and by an adapter: other data than the peer's, whose 49 % exact after 163 s are of NLU++, so there
is no ratio. The goal is that the adapter is ahead of the prompt beyond both intervals. Seeds change the order and the initial weights, not the rows.
The prompt's answers are held to the labels while they are decoded, as the peer's are.

Peers (../shared/PEERS.md; Hugging Face peft and scikit-learn, two threads, one seed): a prompted SmolLM2-135M is right on 2.2 %, a LoRA adapter that
writes the label on 74.4 % after 328 s, LoRA with a classification head on 80.4 % after 240 s, logistic regression on frozen MiniLM embeddings on 87.4 %
after 5.8 s.

usage: ./bench tuning-quality [--data FOLDER] [--seeds N] [--methods prompt,head,lora,classifier,extraction-prompt,extraction] [--steps N]"""

import argparse
import csv
import json
import math
import os
import pathlib
import random
import subprocess
import tempfile
import time

import extraction
from harness import BINARY, figure, note

MODEL, EMBEDDER = "smollm2-135m-instruct", "all-minilm-l6-v2"
PEERS = {
    "prompt": {"accuracy": 0.022, "seconds": 0.0},
    "head": {"accuracy": 0.874, "seconds": 5.8},
    "lora": {"accuracy": 0.744, "seconds": 328.0},
    "classifier": {"accuracy": 0.804, "seconds": 240.0},
}
# Other data than the peer's.
UNCOMPARED = ["extraction-prompt", "extraction"]
# A system message of their own spares the model the long one that its template writes by itself.
PROMPTS = {"text": "{{text}}", "sort": '{{role "system"}}Name the intent.{{role "user"}}{{text}}', "extract": '{{role "system"}}Extract as JSON.{{role "user"}}{{text}}'}
RECIPES = {
    "head": {"method": "head", "model": f"local/{EMBEDDER}", "dataset": "bank", "prompt": "text"},
    "lora": {"model": f"local/{MODEL}", "dataset": "bank", "prompt": "sort", "epochs": 4, "batch_size": 16, "learning_rate": 1e-3},
    "classifier": {"method": "classifier", "model": f"local/{MODEL}", "dataset": "bank", "prompt": "text", "epochs": 4, "batch_size": 16, "learning_rate": 1e-3},
    "extraction": {"model": f"local/{MODEL}", "dataset": "extract", "prompt": "extract", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3},
}


def rows(folder, name):
    with open(folder / name, newline="") as file:
        return [(row[0].strip(), row[1]) for row in list(csv.reader(file))[1:]]


def bank(folder):
    """The peers' rows; labels as words."""
    by_label, test = {}, rows(folder, "test.csv")
    for text, label in rows(folder, "train.csv"):
        by_label.setdefault(label, []).append((text, label))
    train = [row for label in sorted(by_label) for row in random.Random(0).sample(by_label[label], min(10, len(by_label[label])))]
    random.Random(1).shuffle(test)
    words = lambda label: label.replace("_", " ").lower().replace("?", "")
    return [[(text, words(label)) for text, label in part] for part in (train, test[:500])]


def write(path, split, pairs):
    lines = [json.dumps({"id": f"{split}{at}", "input": {"text": text}, "target": target}) for at, (text, target) in enumerate(pairs)]
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

    def prepare(self, data):
        """Models and datasets; returns the labels and how many test rows each dataset has."""
        model, embedder = os.environ.get("REFIT_TEST_MODEL"), os.environ.get("REFIT_TEST_EMBEDDER")
        if model and embedder:
            self.run("model", "pull", model, "--name", MODEL)
            folder = self.folder / "embedder"
            for name, path in json.load(open(embedder))["files"].items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(path)
            self.run("model", "pull", str(folder), "--name", EMBEDDER)
        else:
            self.run("model", "pull", MODEL)
            self.run("model", "pull", EMBEDDER)
        sets = {"bank": bank(data), "extract": [extraction.rows(600, False), extraction.rows(200, True)]}
        for name, parts in sets.items():
            for split, pairs in zip(("train", "test"), parts):
                write(self.folder / f"{name}-{split}.jsonl", split, pairs)
            self.run("data", "import", "--name", name, "--split-file", f"train={name}-train.jsonl", "--split-file", f"test={name}-test.jsonl")
        labels = sorted({label for _, label in sets["bank"][0]})
        schema = {"name": "label", "strict": True, "schema": {"enum": labels}}
        self.format = {"type": "json_schema", "json_schema": schema}
        told = {"label": "Sort the message. Answer with one of these labels and nothing else: " + ", ".join(labels), "shown": shown(sets["extract"][0])}
        told = {name: f'{{{{role "system"}}}}{text}{{{{role "user"}}}}{{{{text}}}}' for name, text in told.items()}
        for name, text in (PROMPTS | told).items():
            (self.folder / f"{name}.prompt").write_text(f"---\n---\n{text}\n")
            self.run("prompt", "publish", f"{name}.prompt")
        return {name: len(parts[1]) for name, parts in sets.items()}

    def accuracy(self, dataset, target, parameters=None):
        """The share that is exactly right, and seconds."""
        scorer = {"exact_match": {"json": True}} if parameters else "exact_match"
        suite = {"name": dataset, "dataset": dataset, "split": "test", "scorers": [scorer], "gate": [{"metric": "exact_match", "at_least": 0.0}],
                 "targets": [{"name": "t", "parameters": {"temperature": 0, "max_tokens": 120, **(parameters or {})}, **target}]}
        (self.folder / "suite.yaml").write_text(json.dumps(suite))
        began = time.perf_counter()
        report = json.loads(self.run("eval", "run", "suite.yaml", "--json"))
        return report["targets"][0]["metrics"]["exact_match"]["mean"], time.perf_counter() - began


def shown(train):
    """Slots by name and five examples, in a template's text."""
    examples = "\n".join(f"{text} -> {answer}" for text, answer in random.Random(3).sample(train, 5))
    text = f"Extract intents and these values as JSON, word by word: {', '.join(extraction.SLOTS)}.\n{examples}"
    return text.replace("{{", "{ {").replace("}}", "} }")


def measure(refit, method, seed, steps):
    """(accuracy, seconds of fitting with everything around it, seconds of measuring)"""
    if method.endswith("prompt"):
        dataset, prompt = ("bank", "label") if method == "prompt" else ("extract", "shown")
        held = {"response_format": refit.format} if method == "prompt" else None
        accuracy, seconds = refit.accuracy(dataset, {"model": f"local/{MODEL}", "prompt": prompt}, held)
        return accuracy, 0.0, seconds
    recipe, name = RECIPES[method], f"{method}{seed}"
    recipe = {"name": name, "seed": seed, **recipe}
    if steps and method != "head":
        recipe["max_steps"] = steps
    (refit.folder / "recipe.yaml").write_text(json.dumps(recipe))
    began = time.perf_counter()
    refit.run("tune", "run", "recipe.yaml", "--json")
    took = time.perf_counter() - began
    accuracy, seconds = refit.accuracy(recipe["dataset"], {"model": recipe["model"], "adapter": name, "prompt": recipe["prompt"]})
    return accuracy, took, seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "../shared/data/banking77")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join([*PEERS, *UNCOMPARED]))
    parser.add_argument("--steps", type=int, default=0, help="bound on the steps of an adapter's training, for a quick look")
    options = parser.parse_args()
    figures, ratios, goals = {}, {}, {}
    with tempfile.TemporaryDirectory() as directory:
        refit = Refit(pathlib.Path(directory))
        tested = refit.prepare(options.data)
        for method in options.methods.split(","):
            found = []
            of = tested["extract" if method.startswith("extraction") else "bank"]
            # A prompt has no seed, and the head's objective is convex: its seed moves nothing but the parts of the cross-validation.
            for seed in range(1, (1 if method.endswith("prompt") else options.seeds) + 1):
                accuracy, took, measuring = measure(refit, method, seed, options.steps)
                low, high = wilson(round(accuracy * of), of)
                note(f"{method}, seed {seed}: {100 * accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f}) in {took:.1f} s of fitting; measured in {measuring:.1f} s")
                found.append((accuracy, took))
            accuracy, seconds = figure([accuracy for accuracy, _ in found], 4), figure([took for _, took in found], 1)
            interval = wilson(round(accuracy["median"] * of), of)
            figures[method] = {"accuracy": accuracy, "ci95": [round(bound, 4) for bound in interval], "seconds": seconds}
            if method in UNCOMPARED:
                continue
            peer = PEERS[method]
            goals[f"{method}_reaches_peer_within_interval"] = interval[1] >= peer["accuracy"]
            ratios[f"{method}_accuracy_vs_peer"] = round(accuracy["median"] / peer["accuracy"], 3)
            if peer["seconds"]:
                ratios[f"{method}_seconds_vs_peer"] = round(seconds["median"] / peer["seconds"], 3)
                goals[f"{method}_under_half_its_seconds"] = seconds["median"] < peer["seconds"] / 2
    if all(method in figures for method in UNCOMPARED):
        prompt, adapter = (figures[method]["ci95"] for method in UNCOMPARED)
        goals["extraction_adapter_ahead_of_prompt"] = adapter[0] > prompt[1]
    print(json.dumps({"name": "tuning-quality", "figures": figures, "ratios": ratios, "goals": goals, "met": all(goals.values())}))


if __name__ == "__main__":
    main()
