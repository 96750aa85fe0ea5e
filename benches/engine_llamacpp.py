"""The peer's part of `./bench engine`: llama.cpp's own API, as llama-server uses it. usage: engine_llamacpp.py GGUF PROMPT GENERATED
SEQUENCES; two threads, one warm-up. Prints one JSON object: tokens per second of prompts and of generation, all sequences together."""

import json
import sys
import time

import llama_cpp as llama
import numpy as np

THREADS = 2


class Peer:
    def __init__(self, file, prompt, generated, sequences):
        llama.llama_backend_init()
        settings = llama.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(file.encode(), settings)
        context = llama.llama_context_default_params()
        context.n_ctx, context.n_seq_max = sequences * (prompt + generated + 8), sequences
        context.n_batch, context.n_ubatch = 2048, 512
        context.n_threads = context.n_threads_batch = THREADS
        context.kv_unified = True
        self.context = llama.llama_init_from_model(self.model, context)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(2048, 0, sequences)

    def step(self, rows):
        """One llama_decode of (token, position, sequence, wants logits) rows."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, position, wanted
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
        if llama.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")

    def likeliest(self, row):
        return int(np.argmax(np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, row), shape=(self.vocabulary,))))

    def measure(self, prompt, generated, sequences):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        following = []
        began = time.perf_counter()
        for s in range(sequences):
            self.step([(1000 + (i * 7919 + s * 13) % 40000, i, s, i == prompt - 1) for i in range(prompt)])
            following.append(self.likeliest(prompt - 1))
        middle = time.perf_counter()
        for g in range(generated):
            self.step([(following[s], prompt + g, s, True) for s in range(sequences)])
            following = [self.likeliest(s) for s in range(sequences)]
        ended = time.perf_counter()
        return sequences * prompt / (middle - began), sequences * generated / (ended - middle)


def main():
    plan = [int(text) for text in sys.argv[2:5]]
    peer = Peer(sys.argv[1], *plan)
    peer.measure(*plan)
    prefill, decode = peer.measure(*plan)
    print(json.dumps({"prefill": prefill, "decode": decode}))


if __name__ == "__main__":
    main()
