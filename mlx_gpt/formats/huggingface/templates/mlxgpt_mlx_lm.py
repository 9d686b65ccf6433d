"""An mlxgpt model for mlx-lm, which finds this file by the entry `model_file` of config.json.

`mlxgpt export` writes this file. It is the same for every model.

Shapes: B batch, T new tokens, C n_embd, H heads, D head width, V vocabulary.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs, create_attention_mask, scaled_dot_product_attention

EPS = 1e-5


@dataclass
class ModelArgs(BaseModelArgs):
    model_type: str
    vocab_size: int
    n_embd: int
    n_head: int
    n_layer: int
    block_size: int
    mlp_dim: int
    mlp: str = "relu2"
    positions: str = "learned"
    qk_norm: bool = False
    norm_weights: bool = False
    final_norm: bool = False
    tied_head: bool = False


class Norm(nn.Module):
    """RMSNorm. With `norm_weights` it has a learned weight for each channel."""

    def __init__(self, args):
        super().__init__()
        if args.norm_weights:
            self.weight = mx.ones(args.n_embd)

    def __call__(self, x):
        return mx.fast.rms_norm(x, self.get("weight"), EPS)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, args):
        super().__init__()
        self.n_head, self.head_dim = args.n_head, args.n_embd // args.n_head
        self.qk_norm, self.rotary = args.qk_norm, args.positions == "rotary"
        for name in ("wq", "wk", "wv", "wo"):
            setattr(self, name, nn.Linear(args.n_embd, args.n_embd, bias=False))

    def __call__(self, x, mask, cache, offset):
        B, T, C = x.shape
        heads = (w(x).reshape(B, T, self.n_head, self.head_dim).swapaxes(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k, v = heads  # (B, H, T, D)
        if self.qk_norm:
            q, k = (mx.fast.rms_norm(a, None, EPS) for a in (q, k))
        if self.rotary:
            q, k = (
                mx.fast.rope(a, self.head_dim, traditional=False, base=1e4, scale=1.0, offset=offset) for a in (q, k)
            )
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        y = scaled_dot_product_attention(q, k, v, cache=cache, scale=self.head_dim**-0.5, mask=mask)
        return self.wo(y.swapaxes(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """The feed-forward network: SwiGLU if it has `fc_gate`, otherwise squared ReLU."""

    def __init__(self, args):
        super().__init__()
        self.fc1 = nn.Linear(args.n_embd, args.mlp_dim, bias=False)
        self.fc2 = nn.Linear(args.mlp_dim, args.n_embd, bias=False)
        if args.mlp == "swiglu":
            self.fc_gate = nn.Linear(args.n_embd, args.mlp_dim, bias=False)

    def __call__(self, x):
        if "fc_gate" in self:
            return self.fc2(nn.silu(self.fc_gate(x)) * self.fc1(x))
        return self.fc2(mx.square(mx.maximum(self.fc1(x), 0)))


class Block(nn.Module):
    """Attention and the feed-forward network, each with a norm before it and a residual connection around it."""

    def __init__(self, args):
        super().__init__()
        self.attn_norm, self.mlp_norm = Norm(args), Norm(args)
        self.attn, self.mlp = Attention(args), MLP(args)

    def __call__(self, x, mask, cache, offset):
        x = x + self.attn(self.attn_norm(x), mask, cache, offset)
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    """The network. mlx-lm looks for the names Model and ModelArgs."""

    def __init__(self, args):
        super().__init__()
        self.args, self.model_type = args, args.model_type
        self.wte = nn.Embedding(args.vocab_size, args.n_embd)
        if args.positions == "learned":
            self.wpe = nn.Embedding(args.block_size, args.n_embd)
        self.layers = [Block(args) for _ in range(args.n_layer)]
        if args.final_norm:
            self.final_norm = Norm(args)
        if not args.tied_head:
            self.lm_head = nn.Linear(args.n_embd, args.vocab_size, bias=False)

    def __call__(self, inputs, cache=None):
        """Returns logits (B, T, V) of token ids (B, T).

        Learned positions exist for block_size tokens only. Every token after them uses the last one.
        """
        cache = cache or [None] * len(self.layers)
        # The position of the first new token: () or, with a cache for a batch, (B,). In a row with n padding tokens on
        # its left it begins at -n.
        offset = mx.array(0 if cache[0] is None else cache[0].offset)
        x = self.wte(inputs)
        if "wpe" in self:
            positions = mx.arange(inputs.shape[1]) + offset[..., None]  # (T,) or (B, T)
            x = x + self.wpe(mx.clip(positions, 0, self.args.block_size - 1))
        mask = create_attention_mask(x, cache[0])
        for layer, own in zip(self.layers, cache, strict=True):
            x = layer(x, mask, own, offset)
        if "final_norm" in self:
            x = self.final_norm(x)
        return self.lm_head(x) if "lm_head" in self else self.wte.as_linear(x)
