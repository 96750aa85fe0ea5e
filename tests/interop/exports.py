"""Loads what `refit tune export` wrote in the programs that it was written for, and compares the logits of every position with Refit's.

usage: exports.py KIND PATH CASE.json TOLERANCE [BASE.gguf]
KIND: `transformers` (PATH is a folder), `llama` (PATH is a merged GGUF file), `llama-lora` (PATH is an adapter's GGUF file, on BASE).
CASE.json: {"text": "...", "tokens": [...], "logits_file": "...", "vocabulary": V}; the file holds T x V little-endian f32.
Prints one JSON object; exit code 1 when the mean difference is above the tolerance, or another token is the likeliest in more than one
position of ten."""

import json
import sys

import numpy as np


def of_transformers(path, case):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer(case["text"], add_special_tokens=False)["input_ids"] == case["tokens"], "the tokenizer gives other tokens"
    chat = [{"role": "user", "content": "hi"}]
    assert "hi" in tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([case["tokens"]])).logits[0].numpy()


def of_llama(path, case, lora=None):
    from llama_cpp import Llama

    model = Llama(model_path=path, lora_path=lora, logits_all=True, n_ctx=512, verbose=False, n_threads=2)
    assert model.tokenize(case["text"].encode(), add_bos=False, special=True) == case["tokens"], "the tokenizer gives other tokens"
    model.eval(case["tokens"])
    return np.array(model.scores[: len(case["tokens"])])


def main():
    kind, path, case_file, tolerance = sys.argv[1:5]
    case = json.load(open(case_file))
    expected = np.fromfile(case["logits_file"], dtype="<f4").reshape(-1, case["vocabulary"])
    if kind == "transformers":
        found = of_transformers(path, case)
    else:
        found = of_llama(path, case) if kind == "llama" else of_llama(sys.argv[5], case, path)
    difference = np.abs(found - expected)
    same = float((found.argmax(1) == expected.argmax(1)).mean())
    print(json.dumps({"kind": kind, "largest_difference": float(difference.max()), "mean_difference": float(difference.mean()), "same_likeliest": same}))
    sys.exit(0 if difference.mean() <= float(tolerance) and same >= 0.9 else 1)


main()
