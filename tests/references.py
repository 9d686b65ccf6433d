"""Straight-line NumPy implementations of the networks and of randyGPT's training, from their equations, in float64."""

import itertools

import numpy as np


def numpy_gpt(w, tokens, config):
    """The logits (T, V) of randyGPT's network with any of our extensions.

    Args:
        w: The weights by name.
        tokens: The ids, (T,).
        config: The ModelConfig.
    """
    w = {k.removesuffix(".weight"): np.array(v, np.float64) for k, v in w.items()}
    if config.linear == "ternary":
        w |= {k: ternary(v, config.ternary_group) for k, v in w.items() if ".attn.w" in k or ".mlp.fc" in k}
    mixers = {"attention": numpy_attention, "mla": numpy_mla, "gated_delta": numpy_gated_delta}
    x = w["wte"][tokens]
    if config.positions == "learned":
        x = x + w["wpe"][: len(tokens)]
    streams = np.stack([x] * config.n_stream) if config.residual == "mhc" else x[None]
    for i, mixer in enumerate(config.mixer_of):
        for half, run in (("attn", mixers[mixer]), ("mlp", numpy_experts if config.ffn == "moe" else numpy_dense)):
            p = f"layers.{i}.{half}"
            own = {k.removeprefix(f"{p}."): v for k, v in w.items() if k.startswith(f"{p}.")}
            matrix, pre, post = numpy_streams(w, f"{p}_residual.", config)
            h = rms(np.tensordot(pre, streams, 1), config) * w.get(f"{p}_norm", 1)
            streams = np.tensordot(matrix, streams, 1) + post[:, None, None] * run(own, h, config)
    x = streams.mean(0)
    x = rms(x, config) * w.get("final_norm", 1) if config.final_norm else x
    return x @ w["wte" if config.tied_head else "lm_head"].T


def numpy_streams(w, name, config):
    """The mixing matrix of a unit, and its weights of reading and writing."""
    if config.residual == "add":
        return np.eye(1), np.ones(1), np.ones(1)
    N, mix, pre, post = config.n_stream, *(w[name + part] for part in ("mix", "pre", "post"))
    logits = np.exp(mix if N > 2 else np.array([mix[0], 0]))
    matrix = sum(
        x * np.eye(N)[list(p)] for x, p in zip(logits / logits.sum(), itertools.permutations(range(N)), strict=True)
    )
    return matrix, 1 / (1 + np.exp(-pre)), 2 / (1 + np.exp(-post))


def numpy_dense(w, x, config):
    hidden = linear(x, w["fc1"], config)
    hidden = silu(linear(x, w["fc_gate"], config)) * hidden if "fc_gate" in w else np.maximum(hidden, 0) ** 2
    return linear(hidden, w["fc2"], config)


def numpy_experts(w, x, config):
    shared = {k.removeprefix("shared."): v for k, v in w.items() if k.startswith("shared.")}
    y = numpy_dense(shared, x, config) if shared else np.zeros_like(x)
    for t, logits in enumerate(x @ w["router"].T):
        best = np.argsort(-logits, kind="stable")[: config.n_expert_per_token]
        shares = np.exp(logits[best] - logits[best].max())
        for i, share in zip(best, shares / shares.sum(), strict=True):
            own = {name: w[name][i] for name in ("fc1", "fc_gate", "fc2")}
            y[t] += share * numpy_dense(own, x[t : t + 1], config)[0]
    return y


def rms(x, config):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)


def silu(x):
    return x / (1 + np.exp(-x))


def linear(x, w, config):
    """The product with the matrix of a linear layer."""
    return (rms(x, config) if config.ternary_norm else x) @ w.T


def turned(x, config):
    """Queries or keys (T, D) of one head, turned by their places as complex numbers are."""
    half, width = x.shape[1] // 2, x.shape[1]
    base = config.rope_theta * config.rope_scale ** (width / max(width - 2, 1))
    angles = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)
    found = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([found.real, found.imag], axis=1)


def attend(q, k, v):
    """The attention of one head: each place sees itself and those before it."""
    out = []
    for t in range(len(q)):
        scores = k[: t + 1] @ q[t] / np.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        out.append(weights / weights.sum() @ v[: t + 1])
    return np.stack(out)


def numpy_attention(w, x, config):
    H, D = config.n_head, config.head_dim
    q, k, v = (linear(x, w[name], config) for name in ("wq", "wk", "wv"))
    out = []
    for head in range(H):
        cut, shared = (slice(h * D, (h + 1) * D) for h in (head, head // (H // config.num_kv_heads)))
        pair = [q[:, cut], k[:, shared]]
        pair = [rms(a, config) for a in pair] if config.qk_norm else pair
        pair = [turned(a, config) for a in pair] if config.positions == "rotary" else pair
        out.append(attend(*pair, v[:, shared]))
    return linear(np.concatenate(out, axis=1), w["wo"], config)


def numpy_mla(w, x, config):
    R, N, P, E = config.mla
    if config.q_lora_rank:
        q = (rms(x @ w["wq_a"].T, config) * w.get("q_norm", 1)) @ w["wq_b"].T
    else:
        q = x @ w["wq"].T
    latent, key = np.split(x @ w["wkv_a"].T, [R], axis=1)
    both, key, out = (rms(latent, config) * w.get("kv_norm", 1)) @ w["wkv_b"].T, turned(key, config), []
    for head in range(config.n_head):
        own, pair = (a[:, head * n : (head + 1) * n] for a, n in ((q, N + P), (both, N + E)))
        queries = np.concatenate([own[:, :N], turned(own[:, N:], config)], axis=1)
        out.append(attend(queries, np.concatenate([pair[:, :N], key], axis=1), pair[:, N:]))
    return np.concatenate(out, axis=1) @ w["wo"].T


def numpy_gated_delta(w, x, config):
    T, C, H = *x.shape, config.n_head
    inputs = np.concatenate([np.zeros((3, 3 * C)), x @ np.concatenate([w[n] for n in ("wq", "wk", "wv")]).T])
    mixed = silu(sum(inputs[i : i + T] * w["conv"][:, i] for i in range(4)))
    q, k, v = (a.reshape(T, H, -1) for a in np.split(mixed, 3, axis=1))
    q, k = (a / np.sqrt((a**2).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
    strength = 1 / (1 + np.exp(-x @ w["wb"].T))
    log_decay = -np.exp(w["decay"]) * np.log1p(np.exp(x @ w["wa"].T + w["shift"]))
    q = q / np.sqrt(q.shape[-1])
    rows = (a[None].swapaxes(1, 2) for a in (q, k, v, strength[..., None], log_decay[..., None]))
    q, k, v, strength, log_decay = rows
    memory = np.zeros((1, H, C // H, C // H))
    y, _ = numpy_delta_rule(q, k, v, strength[..., 0], log_decay[..., 0], memory)
    y = rms(y[0], config) * w["out_norm"]
    return (y.swapaxes(0, 1).reshape(T, C) * silu(x @ w["wg"].T)) @ w["wo"].T


def numpy_delta_rule(q, k, v, strength, log_decay, memory):
    """The gated delta rule, one token after the other. The arguments are those of mixers/delta_rule.py."""
    outs = []
    for t in range(q.shape[2]):
        memory = memory * np.exp(log_decay[:, :, t])[..., None, None]
        read = np.einsum("bhde,bhd->bhe", memory, k[:, :, t])
        delta = strength[:, :, t, None] * (v[:, :, t] - read)
        memory = memory + np.einsum("bhd,bhe->bhde", k[:, :, t], delta)
        outs.append(np.einsum("bhde,bhd->bhe", memory, q[:, :, t]))
    return np.stack(outs, axis=2), memory


def ternary(w, group):
    """The ternary matrix of w (R, C): clip(round(w / s), -1, 1) s, where s is the mean |w| of a group as float16."""
    w = np.asarray(w, np.float32)
    size = {"tensor": w.size, "row": w.shape[1]}.get(group) or int(group)
    rows = w.reshape(-1, size)
    s = np.abs(rows).mean(-1, keepdims=True).astype(np.float16).astype(np.float32)
    trits = np.clip(np.round(np.divide(rows, s, out=np.zeros_like(rows), where=s > 0)), -1, 1)
    return (trits * s).reshape(w.shape).astype(np.float64)


def randygpt_gradients(w, inputs, targets, n_head):
    """The loss of randyGPT's network on one window, and its gradient for every weight.

    Args:
        w: The weights by name, without the suffix ".weight".
        inputs, targets: The ids, (T,).
        n_head: The number of heads.
    """
    T, C = len(inputs), w["wte"].shape[1]
    scale, layers = (C // n_head) ** -0.5, [f"layers.{i}." for i in range(sum(k.endswith("fc1") for k in w))]
    grads, kept = {k: np.zeros_like(v) for k, v in w.items()}, []

    def rms(x):
        r = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * r, r

    def rms_back(dy, y, r):
        return r * (dy - y * (dy * y).mean(-1, keepdims=True))

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def split(x):
        return x.reshape(T, n_head, -1).transpose(1, 0, 2)

    def join(x):
        return x.transpose(1, 0, 2).reshape(T, C)

    x = w["wte"][inputs] + w["wpe"][:T]
    for p in layers:
        h, r = rms(x)
        q, k, v = (split(h @ w[f"{p}attn.{n}"].T) for n in ("wq", "wk", "wv"))
        share = softmax(np.where(np.tri(T, dtype=bool), q @ k.transpose(0, 2, 1) * scale, -np.inf))
        out = join(share @ v)
        x = x + out @ w[f"{p}attn.wo"].T
        g, s = rms(x)
        hidden = np.maximum(g @ w[f"{p}mlp.fc1"].T, 0)
        x = x + hidden**2 @ w[f"{p}mlp.fc2"].T
        kept.append((h, r, q, k, v, share, out, g, s, hidden))
    chances = softmax(x @ w["lm_head"].T)
    loss = -np.log(chances[np.arange(T), targets]).mean()

    d = (chances - np.eye(len(w["wte"]))[targets]) / T
    grads["lm_head"] = d.T @ x
    dx = d @ w["lm_head"]
    for p, (h, r, q, k, v, share, out, g, s, hidden) in reversed(list(zip(layers, kept, strict=True))):
        grads[f"{p}mlp.fc2"] = dx.T @ hidden**2
        d = dx @ w[f"{p}mlp.fc2"] * 2 * hidden
        grads[f"{p}mlp.fc1"] = d.T @ g
        dx = dx + rms_back(d @ w[f"{p}mlp.fc1"], g, s)
        grads[f"{p}attn.wo"] = dx.T @ out
        d = split(dx @ w[f"{p}attn.wo"])
        dv, d = share.transpose(0, 2, 1) @ d, d @ v.transpose(0, 2, 1)
        d = share * (d - (d * share).sum(-1, keepdims=True)) * scale
        dh = 0
        for n, part in (("wq", d @ k), ("wk", d.transpose(0, 2, 1) @ q), ("wv", dv)):
            grads[f"{p}attn.{n}"] = join(part).T @ h
            dh = dh + join(part) @ w[f"{p}attn.{n}"]
        dx = dx + rms_back(dh, h, r)
    np.add.at(grads["wte"], inputs, dx)
    grads["wpe"][:T] = dx
    return loss, grads


def randygpt_rate(iteration, iters, peak, lowest):
    """randyGPT's learning rate: warm-up from a tenth over 100 iterations, flat to 60% of the run, then a cosine."""
    if iteration < 100:
        return peak * (0.1 + 0.9 * iteration / 100)
    progress = max(iteration - 0.6 * iters, 0) / (0.4 * iters)
    return lowest + (peak - lowest) * (1 + np.cos(np.pi * progress)) / 2


def randygpt_training(w, m, v, window, *, n_head, first, iters, num_updates, peak, lowest, decay):
    """Trains randyGPT's network on one window, from iteration `first` to `iters`, by randyGPT's rules.

    Every element of the gradient is clamped to [-1, 1]. AdamW has the betas 0.9 and 0.999 and decays every weight.

    Args:
        w, m, v: Weights and moments by name, without the suffix ".weight". They are changed.
        window: The ids, (T + 1,).
        n_head: The number of heads.
        first, iters: The first iteration, and the length of the whole run.
        num_updates: The number of updates of AdamW before the first iteration.
        peak, lowest: The learning rates of the schedule.
        decay: The decoupled weight decay.

    Returns:
        The losses before each update, and the largest absolute element of the gradients before they are clamped.
    """
    losses, largest = [], 0.0
    for iteration in range(first, iters):
        loss, grads = randygpt_gradients(w, window[:-1], window[1:], n_head)
        losses.append(loss)
        rate = randygpt_rate(iteration, iters, peak, lowest)
        num_updates += 1
        for name, grad in grads.items():
            largest = max(largest, np.abs(grad).max())
            grad = np.clip(grad, -1, 1)
            m[name] = 0.9 * m[name] + 0.1 * grad
            v[name] = 0.999 * v[name] + 0.001 * grad**2
            update = m[name] / (1 - 0.9**num_updates) / (np.sqrt(v[name] / (1 - 0.999**num_updates)) + 1e-8)
            w[name] = w[name] * (1 - rate * decay) - rate * update
    return losses, largest
