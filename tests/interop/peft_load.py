"""Loads a PEFT folder written by Refit with Hugging Face peft, on the same GGUF file, and compares the logits of every position.

usage: peft_load.py GGUF PEFT_FOLDER CASE.json TOLERANCE
CASE.json: {"tokens": [...], "logits_file": "...", "vocabulary": V}; the file holds T x V little-endian f32.
Prints one JSON object; exit code 1 when the largest difference is above the tolerance, or when the adapter changes nothing.
"""

import json
import os
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main():
    gguf, folder, case_file, tolerance = sys.argv[1:5]
    case = json.load(open(case_file))
    expected = torch.frombuffer(bytearray(open(case["logits_file"], "rb").read()), dtype=torch.float32).reshape(-1, case["vocabulary"])
    ids = torch.tensor([case["tokens"]])
    # transformers wants a folder and a name that ends with .gguf; a stored blob has neither.
    link = os.path.join(os.path.dirname(case_file), "model.gguf")
    os.symlink(os.path.abspath(gguf), link)
    base = AutoModelForCausalLM.from_pretrained(os.path.dirname(link), gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        plain = base(ids).logits[0]
        adapted = PeftModel.from_pretrained(base, folder).eval()(ids).logits[0]
    difference = (adapted - expected).abs().max().item()
    change = (adapted - plain).abs().max().item()
    print(json.dumps({"largest_difference": difference, "adapter_changes_by": change, "positions": len(case["tokens"])}))
    sys.exit(0 if difference <= float(tolerance) and change > 0.1 else 1)


main()
