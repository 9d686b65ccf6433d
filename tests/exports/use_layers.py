"""Parts of blocks of transformers, against what mlxgpt's compute with the same weights: mixers and experts.

`python use_layers.py CASE.npz ...`; a case is what test_layers_elsewhere.py's save() wrote: the settings, the weights,
an input x (B, T, C), the output y, a cotangent of y, and the gradient of x.
"""

import json
import sys

import numpy as np
import torch
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
from transformers.models.llama import modeling_llama as llama
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

BOUND = 1e-4  # of the largest value


def of_heads(count, *matrices):
    """The rows of several matrices by head: all rows of head 0, then those of head 1, and so on."""
    heads = [m.reshape(count, -1, m.shape[-1]) for m in matrices]
    return torch.cat(heads, dim=1).reshape(-1, matrices[0].shape[-1])


def interleaved(matrix, count, before, width):
    """Reorders rows for rotations of neighbours. Of each of `count` heads, these are `width` rows after `before`."""
    order = torch.arange(before + width).reshape(1, -1).repeat(count, 1)
    order[:, before:] = before + torch.arange(width).reshape(2, -1).T.reshape(-1)
    return matrix.reshape(count, before + width, -1)[torch.arange(count)[:, None], order].reshape(matrix.shape)


def attended(module, rotary, x):
    """Calls a module of attention with positions from 0 and a causal mask."""
    T = x.shape[1]
    mask = torch.full((T, T), float("-inf")).triu(1)[None, None]
    return module(hidden_states=x, position_embeddings=rotary(x, torch.arange(T)[None]), attention_mask=mask)[0]


def attention(s, w):
    config = llama.LlamaConfig(
        hidden_size=s["n_embd"],
        num_attention_heads=s["n_head"],
        num_key_value_heads=s["n_kv_head"] or s["n_head"],
        rope_parameters={"rope_type": "default", "rope_theta": s["rope_theta"]},
        attn_implementation="eager",
    )
    module = llama.LlamaAttention(config, 0)
    names = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo"}
    module.load_state_dict({f"{theirs}.weight": w[f"{ours}.weight"] for theirs, ours in names.items()})
    return lambda x: attended(module, llama.LlamaRotaryEmbedding(config), x)


def mla(s, w, interleave):
    N, P, E, R, H = (s[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank", "n_head"))
    config = deepseek.DeepseekV3Config(
        hidden_size=s["n_embd"],
        num_attention_heads=H,
        num_key_value_heads=H,
        q_lora_rank=s["q_lora_rank"] or None,
        kv_lora_rank=R,
        qk_nope_head_dim=N,
        qk_rope_head_dim=P,
        v_head_dim=E,
        rope_interleave=interleave,
        rope_parameters={"rope_type": "default", "rope_theta": s["rope_theta"]},
        attn_implementation="eager",
    )
    module = deepseek.DeepseekV3Attention(config, 0)
    names = {"kv_a_proj_with_mqa": "wkv_a", "kv_a_layernorm": "kv_norm", "kv_b_proj": "wkv_b", "o_proj": "wo"}
    queries = {"q_a_proj": "wq_a", "q_a_layernorm": "q_norm", "q_b_proj": "wq_b"}
    names |= queries if s["q_lora_rank"] else {"q_proj": "wq"}
    found = {f"{theirs}.weight": w[f"{ours}.weight"] for theirs, ours in names.items()}
    if interleave:
        for name, count, before in (("q_b_proj" if s["q_lora_rank"] else "q_proj", H, N), ("kv_a_proj_with_mqa", 1, R)):
            found[f"{name}.weight"] = interleaved(found[f"{name}.weight"], count, before, P)
    module.load_state_dict(found)
    assert module.kv_a_layernorm.variance_epsilon == s["norm_eps"]  # theirs is fixed
    return lambda x: attended(module, deepseek.DeepseekV3RotaryEmbedding(config), x)


def gated_delta(s, w):
    H, D = s["n_head"], s["n_embd"] // s["n_head"]
    config = qwen.Qwen3NextConfig(
        hidden_size=s["n_embd"],
        linear_num_key_heads=H,
        linear_num_value_heads=H,
        linear_key_head_dim=D,
        linear_value_head_dim=D,
        linear_conv_kernel_dim=w["conv"].shape[1],
        rms_norm_eps=s["norm_eps"],
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    module = qwen.Qwen3NextGatedDeltaNet(config, 0)
    found = {
        "in_proj_qkvz.weight": of_heads(H, *(w[f"{name}.weight"] for name in ("wq", "wk", "wv", "wg"))),
        "in_proj_ba.weight": of_heads(H, w["wb"], w["wa"]),
        "conv1d.weight": w["conv"][:, None],
        "A_log": w["decay"],
        "dt_bias": w["shift"],
        "norm.weight": w["out_norm.weight"],
        "out_proj.weight": w["wo.weight"],
    }
    module.load_state_dict(found)
    return module


def moe(s, w):
    config = mixtral.MixtralConfig(
        hidden_size=s["n_embd"],
        intermediate_size=w["fc1.weight"].shape[1],
        num_local_experts=s["n_expert"],
        num_experts_per_tok=s["n_expert_per_token"],
    )
    module = mixtral.MixtralSparseMoeBlock(config)
    found = {
        "gate.weight": w["router"],
        "experts.gate_up_proj": torch.cat([w["fc_gate.weight"], w["fc1.weight"]], dim=1),
        "experts.down_proj": w["fc2.weight"],
    }
    module.load_state_dict(found)
    return module


def compare(what, call, case):
    x = torch.tensor(case["x"], requires_grad=True)
    y = call(x)
    y.backward(torch.tensor(case["cotangent"]))
    for name, found in (("y", y), ("gradient", x.grad)):
        wanted = case[name]
        difference = np.abs(found.detach().numpy() - wanted).max() / np.abs(wanted).max()
        assert difference < BOUND, f"{what}: {name} differs by {difference:.2g} of the largest value"
        print(f"{what}: {name} differs by {difference:.2g}")


torch.manual_seed(0)
for path in sys.argv[1:]:
    case = np.load(path)
    settings = json.loads(str(case["settings"]))
    weights = {k.removeprefix("weight."): torch.tensor(case[k]) for k in case if k.startswith("weight.")}
    if settings["part"] == "mla":
        for interleave in (False, True):
            compare(f"{path}, rope_interleave={interleave}", mla(settings, weights, interleave), case)
    else:
        parts = {"attention": attention, "gated_delta": gated_delta, "moe": moe}
        compare(path, parts[settings["part"]](settings, weights), case)
print("ok")
