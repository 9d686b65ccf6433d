"""Straight-line NumPy implementations of the networks, written from their equations, in float64."""

import numpy as np


def numpy_gpt(w, tokens, config):
    """The logits (T, V) of randyGPT's network with any of our extensions.

    Args:
        w: The weights by name.
        tokens: The ids, (T,).
        config: The ModelConfig.
    """
    w = {k.removesuffix(".weight"): np.array(v, np.float64) for k, v in w.items()}
    T, H, D = len(tokens), config.n_head, config.n_embd // config.n_head

    def rms(x, name=None):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w.get(name, 1)

    def head_of(x, t):
        """One head's query or key at place t: normalised, and turned as complex numbers are."""
        x = rms(x) if config.qk_norm else x
        if config.positions == "learned":
            return x
        half = D // 2
        turned = (x[:half] + 1j * x[half:]) * np.exp(1j * t * 10000.0 ** (-np.arange(half) / half))
        return np.concatenate([turned.real, turned.imag])

    x = w["wte"][tokens]
    if config.positions == "learned":
        x = x + w["wpe"][:T]
    for i in range(config.n_layer):
        p = f"layers.{i}."
        h = rms(x, f"{p}attn_norm")
        q, k, v = (h @ w[f"{p}attn.{n}"].T for n in ("wq", "wk", "wv"))
        out = np.zeros_like(x)
        for head in range(H):
            cut = slice(head * D, (head + 1) * D)
            keys = np.stack([head_of(k[t, cut], t) for t in range(T)])
            for t in range(T):
                scores = keys[: t + 1] @ head_of(q[t, cut], t) / np.sqrt(D)
                weights = np.exp(scores - scores.max())
                out[t, cut] = weights / weights.sum() @ v[: t + 1, cut]
        x = x + out @ w[f"{p}attn.wo"].T
        h = rms(x, f"{p}mlp_norm")
        hidden = h @ w[f"{p}mlp.fc1"].T
        if config.ffn == "swiglu":
            gate = h @ w[f"{p}mlp.fc_gate"].T
            hidden = gate / (1 + np.exp(-gate)) * hidden
        else:
            hidden = np.maximum(hidden, 0) ** 2
        x = x + hidden @ w[f"{p}mlp.fc2"].T
    x = rms(x, "final_norm") if config.final_norm else x
    return x @ w["wte" if config.tied_head else "lm_head"].T
