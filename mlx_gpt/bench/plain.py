"""The contender "plain MLX": a training loop as MLX code is usually written.

It does not use mx.compile, builds the causal mask in every step, and reads each loss on the host before the next step.
race.py starts this contender's process with the BLAS, kernels and settings of the MLX wheel, instead of those that
mlxgpt prepares.

Shapes: B batch, T time, C channels, H heads.
"""

import time
from importlib.metadata import version

import numpy as np
from mlx.optimizers import AdamW, clip_grad_norm
from mlx.utils import tree_unflatten

from mlx_gpt.bench.case import LEARNING_RATE, Case
from mlx_gpt.device.mlx import mx, nn


class Block(nn.Module):
    """A transformer block built from layers of mlx.nn. Attribute names give its weights the same names as in mlxgpt."""

    def __init__(self, C: int, H: int):
        super().__init__()
        self.n_head = H
        self.attn = nn.Module()
        for name in ("wq", "wk", "wv", "wo"):
            setattr(self.attn, name, nn.Linear(C, C, bias=False))
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def __call__(self, x, mask):
        B, T, C = x.shape
        h = mx.fast.rms_norm(x, None, 1e-5)
        heads = [w(h).reshape(B, T, self.n_head, -1).transpose(0, 2, 1, 3) for w in self._qkv()]
        scale = (C // self.n_head) ** -0.5
        y = mx.fast.scaled_dot_product_attention(*heads, scale=scale, mask=mask)
        x = x + self.attn.wo(y.transpose(0, 2, 1, 3).reshape(B, T, C))
        h = mx.fast.rms_norm(x, None, 1e-5)
        return x + self.mlp.fc2(nn.relu(self.mlp.fc1(h)) ** 2)

    def _qkv(self):
        return self.attn.wq, self.attn.wk, self.attn.wv


class PlainGPT(nn.Module):
    """randyGPT's network, built from layers of mlx.nn."""

    def __init__(self, case: Case):
        super().__init__()
        shape = case.config.model
        self.wte = nn.Embedding(case.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.block_size, shape.n_embd)
        self.layers = [Block(shape.n_embd, shape.n_head) for _ in range(shape.n_layer)]
        self.lm_head = nn.Linear(shape.n_embd, case.vocab_size, bias=False)

    def __call__(self, tokens):
        T = tokens.shape[1]
        mask = nn.MultiHeadAttention.create_additive_causal_mask(T)
        x = self.wte(tokens) + self.wpe(mx.arange(T))
        for layer in self.layers:
            x = layer(x, mask)
        return self.lm_head(x)


class Contender:
    """A training loop with nn.value_and_grad, AdamW, and one loss.item() per update."""

    def __init__(self, case: Case):
        self.version = f"MLX {version('mlx')}, stock"
        self.case, self.config = case, case.config
        self.draw = np.random.default_rng(0)
        self._reset()

    def losses(self, rows: int) -> list[float]:
        """Returns the losses of the case's first `rows` sequences, before and after one update on them."""
        self._reset()
        found = [self._update(mx.array(self.case.inputs[:rows]), mx.array(self.case.targets[:rows])) for _ in range(2)]
        self._reset()
        return found

    def steps(self, count: int, rows: int) -> float:
        """Runs `count` updates on `rows` sequences each and returns their time in seconds."""
        T, start = self.config.model.block_size, time.perf_counter()
        for _ in range(count):
            starts = self.draw.integers(0, len(self.case.ids) - T, rows)
            windows = np.stack([self.case.ids[s : s + T + 1] for s in starts]).astype(np.int32)
            self._update(mx.array(windows[:, :-1]), mx.array(windows[:, 1:]))
        return time.perf_counter() - start

    def device_peak(self) -> int:
        return mx.get_peak_memory()

    def _reset(self) -> None:
        """Makes a model with the initial weights, and a new optimizer."""
        optimizer = self.config.optimizer
        self.model = PlainGPT(self.case)
        self.model.update(tree_unflatten([(name, mx.array(w)) for name, w in self.case.weights.items()]))
        self.optimizer = AdamW(
            LEARNING_RATE,
            betas=[optimizer.beta1, optimizer.beta2],
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            bias_correction=True,
        )
        self.gradients = nn.value_and_grad(self.model, self._loss)

    def _loss(self, inputs, targets):
        return nn.losses.cross_entropy(self.model(inputs), targets, reduction="mean")

    def _update(self, inputs, targets) -> float:
        loss, grads = self.gradients(inputs, targets)
        grads, _ = clip_grad_norm(grads, self.config.optimizer.max_grad_norm)
        self.optimizer.update(self.model, grads)
        mx.eval(self.model.parameters(), self.optimizer.state)
        return loss.item()
