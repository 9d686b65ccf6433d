"""What a user of mlx-lm does with an exported folder, against what mlxgpt says. Run by test_export.py, apart.

`python use_mlx_lm.py FOLDER EXPECTED.npz`, as use_transformers.py; a quantised folder has only to load and write.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request

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
    for prompt, text in greedy["pairs"]:  # one of them is longer than the context
        told = generate(model, tokenizer, prompt, max_tokens=greedy["count"])
        assert told in (text, text.removeprefix(" ")), (prompt, told, text)  # it drops a space that bytes begin with

# The command, and the server.
prompt, text = greedy["within"][0]
command = [sys.executable, "-m", "mlx_lm", "generate", "--model", folder, "--trust-remote-code", "--temp", "0"]
command += ["--ignore-chat-template", "--prompt", prompt, "--max-tokens", str(greedy["count"])]
done = subprocess.run(command, capture_output=True, text=True)
assert done.returncode == 0 and "Generation: " in done.stdout, done.stderr
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "mlx_lm", "server", "--model", folder, "--trust-remote-code", "--port", str(port)]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    asked = {"prompt": prompt, "max_tokens": greedy["count"], "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    for attempt in range(120):
        try:
            answer = json.load(urllib.request.urlopen(request, timeout=60))
            break
        except OSError:
            assert server.poll() is None and attempt < 119, "the server did not come up"
            time.sleep(0.5)
    told = answer["choices"][0]["text"]
    if "quantization" not in json.load(open(f"{folder}/config.json")):  # quantized weights draw other tokens
        assert told in (text, text.removeprefix(" ")), told
finally:
    server.kill()
print("ok")
