"""Exported ternary networks in llama.cpp, mlx-lm and transformers: the loss and the likeliest tokens are mlxgpt's.

The programs are in an environment of their own, whose Python MLXGPT_EXPORT_PYTHON names. `make test-exports` makes it.
"""

import os
import subprocess

import numpy as np
import pytest
from commands import mlxgpt
from constants import ROOT
from ggml import rows_of

import mlx_gpt
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.device.mlx import mx

OTHER_PYTHON = os.environ.get("MLXGPT_EXPORT_PYTHON")
pytestmark = pytest.mark.skipif(not OTHER_PYTHON, reason="needs an environment with the programs; make test-exports")
NETWORK = {
    **{"n_embd": 256, "n_head": 4, "n_kv_head": 2, "n_layer": 2, "block_size": 64, "ffn_dim": 512, "dropout": 0.0},
    **{"positions": "rotary", "norm_weights": True, "final_norm": True, "tied_head": True, "ffn": "swiglu"},
    **{"linear": "ternary"},
}
WINDOWS = 40


def script(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([OTHER_PYTHON, *arguments], capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=["tensor", "128"])
def trained(request, tmp_path_factory):
    """A network after 300 updates, tokens of the text, and the log-probabilities that mlxgpt computes."""
    folder = tmp_path_factory.mktemp("trained")
    sets = [f"model.{name}={str(value).lower()}" for name, value in NETWORK.items()]
    sets += [f"model.ternary_group={request.param}", "train.eval_every=300", "train.sample_every=0"]
    options = [argument for text in sets for argument in ("--set", text)]
    done = mlxgpt(
        *("train", "--corpus", "pydocs", "--iters", "300", "--batch", "8", "--out", "run", *options), cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (folder / "run/best.safetensors").rename(folder / "model.safetensors")
    run = mlx_gpt.load(folder / "model.safetensors")
    text = "\n".join(open_corpus(["pydocs"]).documents)[-20_000:]
    ids = run.tokenizer.encode(text)[: WINDOWS * 61].astype(np.int32).reshape(WINDOWS, 61)
    np.save(folder / "tokens.npy", ids[:, :-1])
    logits = run.model(mx.array(ids[:, :-1]))
    return folder, ids, np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True)), request.param


EXACT = [("llama.cpp", "f32.gguf", "--gguf-type F32"), ("mlx-lm", "floats", ""), ("transformers", "floats", "")]
EXACT += [("mlx-lm", "packed-mlx-lm", "--to mlx-lm --packed")]
ROUNDED = [("llama.cpp", f"{kind}.gguf", f"--gguf-type {kind}") for kind in ("TQ2_0", "TQ1_0", "Q2_0", "Q4_0")]
ROUNDED += [("transformers", "packed-transformers", "--packed")]


@pytest.mark.parametrize("program, name, options", EXACT + ROUNDED, ids=lambda value: value or "default")
def test_a_program_has_the_loss_of_mlxgpt(trained, program, name, options):
    """The float forms and mlx-lm's 2 bits agree within 1e-4 of the spread. The others round activations."""
    folder, ids, ours, group = trained
    if group != "tensor" and (name.startswith("TQ") or name == "packed-transformers"):
        pytest.skip("this form has one scale for a matrix or a block")
    if not (folder / name).exists():
        done = mlxgpt("export", "model.safetensors", name, *options.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    script(ROOT / "tests/exports/use_ternary.py", program, folder / name, folder / "tokens.npy", folder / "out.npy")
    theirs, targets = np.load(folder / "out.npy"), ids[:, 1:, None]
    assert theirs.shape == ours.shape
    losses = [float(-np.take_along_axis(found, targets, 2).mean()) for found in (ours, theirs)]
    same = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
    worst = float(np.abs(ours - theirs).max() / (ours.max() - ours.min()))
    print(f"{group} {program} {name}: loss {losses[0]:.5f} {losses[1] - losses[0]:+.5f}, {same:.4f}, {worst:.1e}")
    assert abs(losses[1] - losses[0]) < 0.002 and same >= 0.98
    if (program, name, options) in EXACT:
        assert worst < 1e-4


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_the_package_gguf_writes_and_reads_the_same_bytes(tmp_path, kind):
    matrix, data = rows_of(kind)
    values = matrix.trits * np.repeat(matrix.scales, 256, axis=1)
    np.savez(tmp_path / "matrix.npz", values=values.astype(np.float32), data=np.frombuffer(data, np.uint8))
    code = f"""
import gguf, numpy as np
matrix, kind = np.load({str(tmp_path / "matrix.npz")!r}), gguf.GGMLQuantizationType.{kind}
assert gguf.quantize(matrix["values"], kind).tobytes() == matrix["data"].tobytes()
assert np.array_equal(gguf.dequantize(matrix["data"].reshape(2, -1), kind), matrix["values"])
"""
    script("-c", code)
