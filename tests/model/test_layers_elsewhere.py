"""Parts of a block against those of transformers, with the same weights: mixers and experts.

The mixers are Llama's attention, DeepSeek-V3's, and Qwen3-Next's gated DeltaNet. The experts are Mixtral's.
"""

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
# The settings of each network, and the numbers of tokens that a part of its first block reads.
CASES = {
    "llama": ([{"positions": "rotary", "n_kv_head": n} for n in (0, 2, 1)], (1, 7, 64)),
    "deepseek-v3": ([{"mixers": ["mla"], "q_lora_rank": n} for n in (0, 10)], (1, 7, 64)),
    "qwen3-next": ([{"mixers": ["gated_delta"]}], (1, 7, 64, 130)),
    "mixtral": ([{"ffn": "moe"}, {"ffn": "moe", "n_expert": 5, "n_expert_per_token": 3}], (1, 7, 64)),
}
SHAPED = {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5, "kv_lora_rank": 9}


def save(settings, T, file):
    """Computes a part of a block and the gradient of its input, and writes what use_layers.py compares with."""
    settings = {"norm_weights": True, "norm_eps": 1e-6, "rope_theta": 500.0} | settings
    block = network(settings | (SHAPED if settings.get("mixers") == ["mla"] else {})).layers[0]
    moe = settings.get("ffn") == "moe"
    part, config = block.mlp if moe else block.attn, block.attn.config
    draw, shape = np.random.default_rng(T), (2, T, config.n_embd)
    x, cotangent = (draw.normal(size=shape).astype(np.float32) for _ in range(2))

    def call(x):
        return part(x)[0] if moe else part(x, None, Positions(0, T), None)

    (y,), (gradient,) = mx.vjp(call, [mx.array(x)], [mx.array(cotangent)])
    weights = {f"weight.{name}": np.array(w) for name, w in tree_flatten(part.parameters())}
    told = config.architecture() | {"part": "moe" if moe else config.mixer_of[0]}
    np.savez(file, settings=json.dumps(told), x=x, y=y, cotangent=cotangent, gradient=gradient, **weights)


@pytest.mark.skipif(not OTHER_PYTHON, reason="needs an environment with transformers; make test-exports")
@pytest.mark.parametrize("model", CASES)
def test_outputs_and_gradients_are_those_of_transformers(model, tmp_path):
    rows, lengths = CASES[model]
    for i, settings in enumerate(rows):
        for T in lengths:
            save(settings, T, tmp_path / f"{i}-{T}.npz")
    script = [OTHER_PYTHON, ROOT / "tests/exports/use_layers.py", *sorted(tmp_path.glob("*.npz"))]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(script, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr[-3000:]
