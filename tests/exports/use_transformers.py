"""What a user of transformers does with an exported folder, against what mlxgpt says. Run by test_export.py, apart.

`python use_transformers.py FOLDER EXPECTED.npz SCRATCH`; EXPECTED holds tokens (B, T), their logits (B, T, V), `texts`
to encode with `ids` as JSON, and prompts with the greedy continuation of each as JSON.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

folder, expected, scratch = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
tokens, greedy = torch.tensor(expected["tokens"].astype(np.int64)), json.loads(str(expected["greedy"]))


def close(a, b):
    np.testing.assert_allclose(a.detach().numpy(), b, atol=1e-4, rtol=1e-4)


def write(prompts, **how):
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1)
    out = model.generate(**batch, do_sample=False, max_new_tokens=greedy["count"], **how)
    return [tokenizer.decode(row[batch["input_ids"].shape[1] :], skip_special_tokens=True) for row in out]


# Logits: at once, and token by token over the cache.
close(model(tokens).logits, expected["logits"])
past, steps = None, []
for t in range(tokens.shape[1]):
    out = model(tokens[:, t : t + 1], past_key_values=past, use_cache=True)
    past = out.past_key_values
    steps.append(out.logits)
close(torch.cat(steps, dim=1), expected["logits"])
loss = model(tokens, labels=tokens).loss
assert abs(loss.item() - float(expected["loss"])) < 1e-4

# The tokenizer, on every text.
for text, ids in json.loads(str(expected["texts"])):
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
    assert tokenizer.decode(ids) == text, text

# Greedy text: alone, with and without a cache, in a left-padded batch, past the context, through a pipeline.
for prompt, text in greedy["pairs"]:
    assert write([prompt]) == [text], (prompt, write([prompt]), text)
    assert write([prompt], use_cache=False) == [text], prompt
assert write([p for p, _ in greedy["pairs"]]) == [t for _, t in greedy["pairs"]]
padded = tokenizer([p for p, _ in greedy["within"]], return_tensors="pt", padding=True)
rows = model(**padded).logits[:, -1]
for row, (prompt, _) in zip(rows, greedy["within"], strict=True):
    close(row, model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].detach().numpy())
prompt, text = greedy["pairs"][0]
told = pipeline("text-generation", model=folder, trust_remote_code=True)(
    prompt, do_sample=False, max_new_tokens=greedy["count"], return_full_text=False
)
assert told[0]["generated_text"] == text, told
try:
    model(torch.zeros(1, model.config.block_size + 1, dtype=torch.long))
    raise AssertionError("a context too long was taken")
except ValueError as error:
    assert "call generate()" in str(error)

# A round trip through the library's own writer.
model.save_pretrained(scratch)
tokenizer.save_pretrained(scratch)
again = AutoModelForCausalLM.from_pretrained(scratch, trust_remote_code=True)
close(again(tokens).logits, expected["logits"])
assert (
    AutoTokenizer.from_pretrained(scratch, trust_remote_code=True)(prompt)["input_ids"]
    == tokenizer(prompt)["input_ids"]
)
print("ok")
