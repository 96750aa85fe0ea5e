"""The peer's part of `./bench embeddings`: onnxruntime on a model exported here once. usage: embeddings_onnx.py MODEL_FOLDER ONNX_FILE
TEXTS.json BATCH. Prints one JSON object about itself, then for every line on standard input one with sentences per second and the vectors."""

import json
import os
import pathlib
import sys
import time

import onnxruntime
import torch
from transformers import AutoModel, AutoTokenizer

THREADS = 2


def export(model, tokenizer, file):
    """Both dimensions free, written under another name first."""
    inputs = tokenizer(["hello world", "hi"], padding=True, return_tensors="pt")
    rows, columns = torch.export.Dim("rows", min=1, max=512), torch.export.Dim("columns", min=2, max=512)
    part = f"{file}.part"
    torch.onnx.export(model, (), part, kwargs=dict(inputs), input_names=list(inputs), output_names=["hidden", "pooled"], dynamo=True,
                      dynamic_shapes={name: {0: rows, 1: columns} for name in inputs}, external_data=False)
    os.rename(part, file)


def main():
    folder, file, texts, batch = sys.argv[1:5]
    texts, batch = json.loads(pathlib.Path(texts).read_text()), int(batch)
    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not os.path.exists(file):
        out, sys.stdout = sys.stdout, sys.stderr
        with torch.no_grad():
            export(AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer, file)
        sys.stdout = out
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    tokens = sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)
    print(json.dumps({"onnxruntime_version": onnxruntime.__version__, "mean_tokens": round(tokens, 1)}), flush=True)
    for _ in sys.stdin:
        vectors = []
        began = time.perf_counter()
        for at in range(0, len(texts), batch):
            given = tokenizer(texts[at:at + batch], padding=True, truncation=True, max_length=256, return_tensors="pt")
            hidden = torch.from_numpy(session.run(None, {name: given[name].numpy() for name in names})[0])
            mask = given["attention_mask"][..., None].float()
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors += torch.nn.functional.normalize(mean, dim=1)
        seconds = time.perf_counter() - began
        print(json.dumps({"rate": len(texts) / seconds, "vectors": torch.stack(vectors).tolist()}), flush=True)


if __name__ == "__main__":
    main()
