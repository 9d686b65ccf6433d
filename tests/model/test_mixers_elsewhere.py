"""The mixers against those of transformers: Llama's attention, DeepSeek-V3's, and Qwen3-Next's gated DeltaNet."""

import json
import os
import subprocess

import numpy as np
import pytest
from constants import ROOT
from mlx.utils import tree_flatten
from networks import network

from mlx_gpt.device.mlx import mx
from mlx_gpt.model.positions import Positions

OTHER_PYTHON = os.environ.get("MLXGPT_EXPORT_PYTHON")
# The settings of each network, and the numbers of tokens that its first mixer reads.
CASES = {
    "llama": ([{"positions": "rotary", "n_kv_head": n} for n in (0, 2, 1)], (1, 7, 64)),
    "deepseek-v3": ([{"mixers": ["mla"], "q_lora_rank": n} for n in (0, 10)], (1, 7, 64)),
    "qwen3-next": ([{"mixers": ["gated_delta"]}], (1, 7, 64, 130)),
}
SHAPED = {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5, "kv_lora_rank": 9}


def save(settings, T, file):
    """Computes a mixer and the gradient of its input, and writes what use_mixers.py compares with."""
    settings = {"norm_weights": True, "norm_eps": 1e-6, "rope_theta": 500.0} | settings
    mixer = network(settings | (SHAPED if settings.get("mixers") == ["mla"] else {})).layers[0].attn
    draw, shape = np.random.default_rng(T), (2, T, mixer.config.n_embd)
    x, cotangent = (draw.normal(size=shape).astype(np.float32) for _ in range(2))
    (y,), (gradient,) = mx.vjp(lambda x: mixer(x, None, Positions(0, T), None), [mx.array(x)], [mx.array(cotangent)])
    weights = {f"weight.{name}": np.array(w) for name, w in tree_flatten(mixer.parameters())}
    told = mixer.config.architecture() | {"mixer": mixer.config.mixer_of[0]}
    np.savez(file, settings=json.dumps(told), x=x, y=y, cotangent=cotangent, gradient=gradient, **weights)


@pytest.mark.skipif(not OTHER_PYTHON, reason="needs an environment with transformers; make test-exports")
@pytest.mark.parametrize("model", CASES)
def test_outputs_and_gradients_are_those_of_transformers(model, tmp_path):
    rows, lengths = CASES[model]
    for i, settings in enumerate(rows):
        for T in lengths:
            save(settings, T, tmp_path / f"{i}-{T}.npz")
    script = [OTHER_PYTHON, ROOT / "tests/exports/use_mixers.py", *sorted(tmp_path.glob("*.npz"))]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(script, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr[-3000:]
