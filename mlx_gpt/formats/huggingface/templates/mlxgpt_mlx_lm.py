"""An mlxgpt model for mlx-lm, which finds this file by the entry `model_file` of config.json.

`mlxgpt export` writes this file. It is the same for every model.

Shapes: B batch, T new tokens, C n_embd, H heads, D head width, V vocabulary.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs, create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.cache import CacheList, KVCache

EPS = 1e-5
WINDOWS = 64  # contexts that are read at once past block_size


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
            if isinstance(mask, mx.array):
                k, v = (a[..., -mask.shape[-1] :, :] for a in (k, v))
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

    def make_cache(self):
        """Returns an empty cache: the keys and values of each layer. That of layer 0 also holds the token ids."""
        return [CacheList(KVCache(), KVCache()), *(KVCache() for _ in self.layers[1:])]

    def __call__(self, inputs, cache=None):
        """Returns logits (B, T, V) of token ids (B, T).

        With a cache, a text may be longer than block_size. The logits of each token after the first block_size are then
        those of the last block_size tokens up to it, read from position 0. MLX reads such a context only when its
        logits are evaluated. Of a long prompt, mlx-lm evaluates the logits of the last token, so only the first and the
        last block_size tokens are read.

        Raises:
            ValueError: There is no cache and T is more than block_size, or the cache is not from make_cache().
        """
        size, T = self.args.block_size, inputs.shape[1]
        if not cache:
            if T > size:
                raise ValueError(
                    f"{T} tokens are more than the context of {size} tokens; give fewer, such as with "
                    f"--max-seq-length {size}, or give a cache"
                )
            return self._head(self._hidden(inputs, [None] * len(self.layers), 0))
        if not isinstance(cache[0], CacheList):
            raise ValueError(
                f"a cache of {type(cache[0]).__name__} has no token ids; make it with make_prompt_cache(model) of "
                "mlx_lm.models.cache"
            )
        states, ids = [cache[0][0], *cache[1:]], cache[0][1]
        offset, before = ids.offset, ids.size()
        new = inputs[:, None, :, None].astype(mx.int32)
        text = ids.update_and_fetch(new, new)[0][:, 0, :, 0]  # (B, S) cached and new tokens
        if before + T <= size:
            return self._head(self._hidden(inputs, states, offset))
        return self._long(inputs, states, offset, text)

    def _long(self, inputs, states, offset, text):
        """Returns logits (B, T, V) of inputs (B, T), the ends of the texts (B, S), of which some exceed block_size.

        The keys and values of tokens after the first block_size are not used. They are zeros, or arbitrary in a batch,
        so that all caches have the same length.
        """
        size, (B, T) = self.args.block_size, inputs.shape
        first = offset.tolist() if isinstance(offset, mx.array) else [offset] * B  # positions of the first new tokens
        within = min(max(size - min(first), 0), T)  # the columns of tokens up to block_size
        logits = mx.zeros((B, T, self.args.vocab_size))
        if within:
            logits[:, :within] = self._head(self._hidden(inputs[:, :within], states, offset))
        if within < T:
            head_dim = self.args.n_embd // self.args.n_head
            unused = mx.zeros((B, self.args.n_head, T - within, head_dim), states[0].keys.dtype)
            for state in states:
                state.update_and_fetch(unused, unused)
        over = [(row, t) for row in range(B) for t in range(T) if first[row] + t >= size]
        if not over:  # only padding makes the texts longer than block_size
            return logits
        rows, columns = mx.array(over).T
        ends = columns + text.shape[1] - T
        contexts = text[rows[:, None], ends[:, None] + mx.arange(1 - size, 1)]
        parts = (contexts[i : i + WINDOWS] for i in range(0, len(over), WINDOWS))
        found = [self._hidden(part, [None] * len(self.layers), 0)[:, -1] for part in parts]
        logits[rows, columns] = self._head(mx.concatenate(found))
        return logits

    def _hidden(self, inputs, cache, offset):
        """Returns the input of the head (B, T, C).

        `offset` is the position of the first token: a number or, with a cache for a batch, (B,). In a row with n
        padding tokens on its left it begins at -n. No token attends to more than block_size tokens.
        """
        x, T, offset = self.wte(inputs), inputs.shape[1], mx.array(offset)
        if "wpe" in self:
            positions = mx.arange(T) + offset[..., None]  # (T,) or (B, T)
            x = x + self.wpe(mx.clip(positions, 0, self.args.block_size - 1))
        mask = create_attention_mask(x, cache[0])
        if isinstance(mask, mx.array):
            mask = mask[..., 1 - self.args.block_size - T :]
        for layer, own in zip(self.layers, cache, strict=True):
            x = layer(x, mask, own, offset)
        return self.final_norm(x) if "final_norm" in self else x

    def _head(self, x):
        return self.lm_head(x) if "lm_head" in self else self.wte.as_linear(x)
