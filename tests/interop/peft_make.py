"""Makes an adapter with Hugging Face peft on a GGUF file, as people bring it along, and says what the adapted model computes.

usage: peft_make.py GGUF PEFT_FOLDER CASE.json KIND
CASE.json: {"tokens": [...], "logits_file": "..."}; the logits (T x V, little-endian f32) are written to that file. KIND: dora or rslora.
"""

import json
import os
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main():
    gguf, folder, case_file, kind = sys.argv[1:5]
    case = json.load(open(case_file))
    link = os.path.join(os.path.dirname(case_file), "made.gguf")
    os.symlink(os.path.abspath(gguf), link)
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(os.path.dirname(link), gguf_file="made.gguf", dtype=torch.float32)
    modules = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=modules, use_dora=kind == "dora", use_rslora=kind == "rslora", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn_like(value) * 0.02)
            if "lora_magnitude_vector" in name:
                value.mul_(1 + 0.1 * torch.randn_like(value))
        logits = model(torch.tensor([case["tokens"]])).logits[0]
    model.save_pretrained(folder)
    open(case["logits_file"], "wb").write(logits.contiguous().numpy().astype("<f4").tobytes())


main()
