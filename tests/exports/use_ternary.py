"""Log-probabilities of every token of some windows, as a program computes them.

`python use_ternary.py PROGRAM MODEL TOKENS.npy OUT.npy`. PROGRAM is llama.cpp, mlx-lm or transformers. TOKENS has ids
(B, T), and OUT gets float32 log-probabilities (B, T, V). No code from the model's folder is run.
"""

import json
import sys
import urllib.request

import numpy as np

program, path, tokens, out = sys.argv[1], sys.argv[2], np.load(sys.argv[3]), sys.argv[4]


def in_llama_cpp():
    """One request for each token. The cache of a window is used again, so that each request computes one token."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = path, tokens.shape[1] + 4, 1, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup, params.port, params.verbosity = False, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    options = {"n_predict": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "n_probs": 1 << 20}
    options |= {"cache_prompt": True, "logit_bias": [[int(tokens[0, 0]), 1e6]]}  # a token that is text

    def after(prompt):
        body = json.dumps({"prompt": prompt, **options}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/completion", body, {"Content-Type": "application/json"}
        )
        told = json.load(urllib.request.urlopen(request, timeout=120))["completion_probabilities"][0]["top_logprobs"]
        return [row["logprob"] for row in sorted(told, key=lambda row: row["id"])]

    return [[after(row[: end + 1].tolist()) for end in range(len(row))] for row in tokens]


def in_mlx_lm():
    import mlx.core as mx
    from mlx_lm import load

    mx.set_default_device(mx.cpu)
    logits = load(path)[0](mx.array(tokens.astype(np.int32)))
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def in_transformers():
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    assert type(model).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor(tokens.astype(np.int64))).logits, -1)


found = {"llama.cpp": in_llama_cpp, "mlx-lm": in_mlx_lm, "transformers": in_transformers}[program]()
np.save(out, np.array(found, np.float32))
