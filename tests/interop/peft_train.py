"""LoRA training with Hugging Face peft on a GGUF file and a fixed batch: the peer of `./bench tuning`, and of the test of the loss curve.

usage: peft_train.py GGUF FOLDER BATCH LENGTH f32|autocast|write
`write` saves a fresh adapter (rank 8 on all seven projections, seed 0) as a PEFT folder and ends. Otherwise the adapter is read from the
folder, numbers of steps come from standard input, a line each, and each is answered with one line of JSON: losses, seconds of every step,
and the most memory so far.
"""

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
import warnings

import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(2)
os.environ["HF_HUB_OFFLINE"] = "1"

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base(gguf):
    # transformers wants a folder and a name that ends with .gguf; a stored blob has neither.
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(os.path.abspath(gguf), f"{folder}/model.gguf")
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    gguf, folder, batch, length, mode = sys.argv[1:6]
    batch, length = int(batch), int(length)
    if mode == "write":
        torch.manual_seed(0)
        get_peft_model(base(gguf), LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")).save_pretrained(folder)
        return
    model = PeftModel.from_pretrained(base(gguf), folder, is_trainable=True)
    model.config.use_cache = False
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = (torch.arange(batch * length).reshape(batch, length) * 7919) % 40000 + 1000
    for line in sys.stdin:
        losses, seconds = [], []
        for _ in range(int(line)):
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext():
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"losses": losses, "seconds": seconds, "peak_mb": peak_mb()}), flush=True)


main()
