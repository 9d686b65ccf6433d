"""Reads a GGUF file with the package gguf, runs it in llama.cpp's server, and compares both with what mlxgpt computed.

`python use_llama_cpp.py FILE.gguf EXPECTED.npz`. EXPECTED has the tensors of the file, `facts` as JSON with the
metadata, and, for the server: texts with their ids, prompts with the log-probabilities of the next token, and a prompt
with its greedy continuation. Prints the loss of the prompts' next tokens as JSON.
"""

import json
import sys
import urllib.request

import gguf
import numpy as np
import xllamacpp

path, expected = sys.argv[1], np.load(sys.argv[2])
facts = json.loads(str(expected["facts"]))

# The package gguf.
reader = gguf.GGUFReader(path)
for key, value in facts["metadata"].items():
    assert reader.get_field(key).contents() == value, (key, value)
tensors = {tensor.name: tensor for tensor in reader.tensors}
wanted = {name.removeprefix("tensor."): expected[name] for name in expected.files if name.startswith("tensor.")}
assert tensors.keys() == wanted.keys()
for name, tensor in tensors.items():
    found = gguf.dequantize(tensor.data, tensor.tensor_type)
    assert found.shape == wanted[name].shape and tuple(tensor.shape) == wanted[name].shape[::-1], name
    step = np.abs(wanted[name]).max() * {"F32": 0, "F16": 2**-10, "Q8_0": 1 / 127}[tensor.tensor_type.name]
    assert np.abs(found - wanted[name]).max() <= step, name

# The server: exact arithmetic needs a float32 cache and no flash attention.
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = path, facts["block_size"], 1, 0
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.warmup, params.port, params.verbosity = False, 0, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)


def ask(route, **content):
    request = urllib.request.Request(
        server.listening_address + route, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=120))


def complete(prompt, **options):
    return ask("/completion", prompt=prompt, cache_prompt=False, **options)


for text, ids in facts["texts"]:
    found = ask("/tokenize", content=text, add_special=False, parse_special=False)["tokens"]
    assert found == ids, (text[:80], found[:40], ids[:40])

worst, losses, exact = 0.0, [], facts["metadata"]["general.file_type"] == 0
size = expected["logprobs"].shape[1]
for ids, target, logprobs in zip(facts["prompts"], facts["targets"], expected["logprobs"], strict=True):
    # The bias chooses a token that is text, because the server reports no token that ends within a character. It does
    # not change the log-probabilities.
    sampling = {"n_predict": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    told = complete(ids, n_probs=size, logit_bias=[[facts["plain"], 1e6]], **sampling)
    told = told["completion_probabilities"][0]["top_logprobs"]
    found = np.full(size, np.nan)
    found[[row["id"] for row in told]] = [row["logprob"] for row in told]
    losses.append(-found[target])
    worst = max(worst, float(np.abs(found - logprobs).max()))
assert not exact or worst < 1e-4, worst
if exact:
    told = complete(facts["greedy"][0], n_predict=64, temperature=0.0, return_tokens=True)
    assert told["tokens"] == facts["greedy"][1], (told["tokens"], facts["greedy"][1])
    if "\ufffd" not in facts["greedy"][2]:  # the server leaves out bytes that are no text
        assert told["content"] == facts["greedy"][2], told["content"]
told = complete(facts["prompts"][0], n_predict=8, temperature=0.0, logit_bias=[[facts["eos"], 1e6]])
assert told["content"] == "" and told["stop_type"] == "eos", told
print(json.dumps({"loss": float(np.mean(losses)), "worst": worst}))
