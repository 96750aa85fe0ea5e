"""Small random models of every architecture that Refit serves, made by Hugging Face transformers, and transformers' logits of them; and
transformers' logits of a GGUF file; and what peft and transformers say of training them.

usage: families.py make DIRECTORY        one folder and one GGUF file for each of CASES, and DIRECTORY/cases.json
       families.py train DIRECTORY       the same, with a random LoRA adapter (NAME.peft), the loss of the tokens through it with its
                                         gradients (NAME.lora.safetensors), and the loss without it with those of all weights (NAME.full.safetensors)
       families.py logits JOBS.json      logits of folders, in one process: [{"folder", "adapter" or null, "out": "name.f32"}]
       families.py gguf FILE TOKENS.json OUT.f32   logits of a GGUF file, dequantised by transformers; little-endian f32, one row a token

cases.json: [{"name", "folder", "gguf" or null, "tokens": [...], "logits": "name.f32"}]; after `train` with the losses as "lora" and "full". Weights are random, norms and biases too, so that
nothing that is left out goes unnoticed.
"""

import copy
import json
import os
import pathlib
import sys

import gguf
import numpy as np
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 288
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = [(i * 37 + 11) % 256 for i in range(48)]
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
# name: (settings, GGUF architecture or none, saved as)
CASES = {
    "llama": ({"model_type": "llama", "tie_word_embeddings": False}, "llama", torch.float32),
    "llama-tied-bf16": ({"model_type": "llama", "tie_word_embeddings": True}, None, torch.bfloat16),
    "llama-llama3": ({"model_type": "llama", "rope_parameters": {"rope_theta": 10000.0, **LLAMA3}}, "llama", torch.float32),
    "llama-linear": ({"model_type": "llama", "rope_parameters": {"rope_theta": 20000.0, "rope_type": "linear", "factor": 4.0}}, "llama", torch.float32),
    "mistral": ({"model_type": "mistral", "sliding_window": 9, "head_dim": 32}, "llama", torch.float32),
    "qwen2": ({"model_type": "qwen2", "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "qwen2", torch.float16),
    "qwen3": ({"model_type": "qwen3", "head_dim": 32}, "qwen3", torch.float32),
    "gemma3": ({"model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 32, "sliding_window": 9, "num_key_value_heads": 1,
                "query_pre_attn_scalar": 32, "hidden_activation": "gelu_pytorch_tanh"}, "gemma3", torch.float32),
}


def randomised(settings):
    torch.manual_seed(7)
    config = AutoConfig.for_model(**{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    offset = 0.0 if "gemma" in settings["model_type"] else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that attention is far from even and every norm and bias shows.
            size = 0.3 if parameter.dim() > 1 or name.endswith("bias") else 0.2
            parameter.normal_(0.0, size)
            if parameter.dim() == 1 and not name.endswith("bias"):
                parameter.add_(offset)
    return model


def byte_names():
    """GPT-2's printable character for each byte."""
    return sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)


def tokens():
    special = ["<|begin|>", "<|im_end|>", "<|pad|>", "<|im_start|>"]
    # With one merge: GGUF's writer leaves empty lists out.
    names = byte_names() + special + ["th"]
    return names + [f"<|unused{i}|>" for i in range(VOCABULARY - len(names))]


def save_folder(model, place, dtype):
    names = tokens()
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([name for name in names[256:] if name != "th"])
    # In several shards, as large models come.
    model.to(dtype).save_pretrained(place, max_shard_size="150KB")
    tokenizer.save(str(place / "tokenizer.json"))
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    (place / "tokenizer_config.json").write_text(json.dumps({"bos_token": names[256], "eos_token": {"content": names[257]}, "chat_template": template}))


def interleaved(weight, heads):
    """The row order of llama GGUF files: halves of a head in turns."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = {**NAMES, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def gguf_name(name, names):
    if name in WHOLE:
        return WHOLE[name]
    parts = name.split(".")
    layer, part, kind = parts[2], ".".join(parts[3:-1]), parts[-1]
    return f"blk.{layer}.{names[part]}.{kind}"


def save_gguf(model, path, architecture):
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if getattr(config, "sliding_window", None) and architecture != "qwen2":
        writer.add_sliding_window(config.sliding_window)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        # As llama.cpp's converter: what periods are multiplied with.
        plain = 1.0 / (rope["rope_theta"] ** (torch.arange(0, width, 2).float() / width))
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32))
    names = tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([1 if i < 256 or name == "th" else 3 for i, name in enumerate(names)])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.float().numpy()
        if "q_proj" in name and architecture == "llama":
            value = interleaved(value, config.num_attention_heads)
        if "k_proj" in name and architecture == "llama":
            value = interleaved(value, config.num_key_value_heads)
        if architecture == "gemma3" and "norm" in name:
            value = value + 1.0
        writer.add_tensor(gguf_name(name, GEMMA_NAMES if architecture == "gemma3" else NAMES), np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_logits(model, ids, path):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    path.write_bytes(logits.numpy().tobytes())
    return logits


def make(directory):
    cases = []
    for name, (settings, architecture, dtype) in CASES.items():
        model = randomised(settings)
        place = directory / name
        place.mkdir()
        # What is compared with is what was saved, rounded to its type; but not the rotary tables, which are no parameters.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(dtype).float())
        save_folder(copy.deepcopy(model), place, dtype)
        logits = write_logits(model, TOKENS, directory / f"{name}.f32")
        file = directory / f"{name}.gguf" if architecture else None
        if file:
            save_gguf(model, file, architecture)
        cases.append({"name": name, "folder": str(place), "gguf": str(file) if file else None, "tokens": TOKENS, "logits": str(directory / f"{name}.f32")})
        print(name, "logits from", logits.min().item(), "to", logits.max().item())
    (directory / "cases.json").write_text(json.dumps(cases))


def gradients(model, path):
    loss = model(input_ids=torch.tensor([TOKENS]), labels=torch.tensor([TOKENS])).loss
    loss.backward()
    named = {name: p.grad.clone().contiguous() for name, p in model.named_parameters() if p.grad is not None}
    safetensors.torch.save_file(named, path)
    return loss.item()


def train(directory):
    make(directory)
    cases = json.loads((directory / "cases.json").read_text())
    for case in cases:
        name = case["name"]
        model = AutoModelForCausalLM.from_pretrained(case["folder"], dtype=torch.float32)
        case["full"] = gradients(model, directory / f"{name}.full.safetensors")
        model.zero_grad(set_to_none=True)
        torch.manual_seed(11)
        adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=4.5, target_modules=TARGETS, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for key, value in adapted.named_parameters():
                if "lora_B" in key:
                    value.normal_(0.0, 0.1)
        adapted.save_pretrained(directory / f"{name}.peft")
        case["lora"] = gradients(adapted, directory / f"{name}.lora.safetensors")
        print(name, case["full"], case["lora"])
    (directory / "cases.json").write_text(json.dumps(cases))


def of_folders(jobs):
    for job in json.load(open(jobs)):
        model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()
        if job["adapter"]:
            model = PeftModel.from_pretrained(model, job["adapter"]).eval()
        write_logits(model, TOKENS, pathlib.Path(job["out"]))


def of_gguf(file, tokens_file, out):
    ids = json.load(open(tokens_file))
    link = pathlib.Path(out).parent / "model.gguf"
    os.symlink(os.path.abspath(file), link)
    model = AutoModelForCausalLM.from_pretrained(link.parent, gguf_file=link.name, dtype=torch.float32).eval()
    write_logits(model, ids, pathlib.Path(out))


if sys.argv[1] == "make":
    make(pathlib.Path(sys.argv[2]))
elif sys.argv[1] == "train":
    train(pathlib.Path(sys.argv[2]))
elif sys.argv[1] == "logits":
    of_folders(sys.argv[2])
else:
    of_gguf(*sys.argv[2:5])
