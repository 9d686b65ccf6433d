"""What a user of mlx-lm does with an exported folder, against what mlxgpt says. Run by test_export.py, apart.

`python use_mlx_lm.py FOLDER EXPECTED.npz`, as use_transformers.py; a quantised folder has only to load and write.
"""

import json
import sys

import mlx.core as mx
import numpy as np
from mlx_lm import generate, load

mx.set_default_device(mx.cpu)
folder, expected = sys.argv[1], np.load(sys.argv[2])
try:
    load(folder)
    raise AssertionError("a model file was run unasked")
except ValueError as error:
    assert "trust_remote_code" in str(error)
model, tokenizer = load(folder, trust_remote_code=True)
greedy = json.loads(str(expected["greedy"]))
if "quantization" not in json.load(open(f"{folder}/config.json")):
    logits = model(mx.array(expected["tokens"].astype(np.int32)))
    np.testing.assert_allclose(np.array(logits), expected["logits"], atol=1e-3, rtol=1e-3)
    for prompt, text in greedy["within"]:
        told = generate(model, tokenizer, prompt, max_tokens=greedy["count"])
        assert told in (text, text.removeprefix(" ")), (prompt, told, text)  # it drops a space that bytes begin with
# Past the context: no position is read that is not there, and every token is one.
long = generate(model, tokenizer, greedy["pairs"][0][0], max_tokens=2 * model.args.block_size)
assert long
print("ok")
