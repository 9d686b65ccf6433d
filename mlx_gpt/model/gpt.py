"""The randyGPT network: weightless RMSNorm, causal attention, squared ReLU, untied head, no final norm; and options.

Shapes: B batch, T time, C n_embd, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

from mlx.utils import tree_flatten, tree_unflatten

from mlx_gpt import rng
from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.errors import UserError
from mlx_gpt.model.ffn.dense import MLPS
from mlx_gpt.model.mixers.attention import CausalSelfAttention
from mlx_gpt.model.mixers.kernels import Attend, hide_future, make_attend, with_past
from mlx_gpt.model.norm import Norm
from mlx_gpt.model.state import KVCache

Drop = Callable[[mx.array], mx.array]


@mx.custom_function
def weights_first(x: mx.array, *weights: mx.array) -> tuple[mx.array, ...]:
    """Its arguments. In the backward pass nothing goes on from x before the gradients of the weights are there.

    MLX would leave those for the end, and keep every activation that they need until then.
    """
    return x, *weights


@weights_first.vjp
def _(_primals, cotangents, _outputs):
    dx, *dweights = cotangents
    return mx.depends(dx, dweights), *dweights


class Block(nn.Module):
    """x + drop(attn(rms(x))), then x + drop(mlp(rms(x)))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attn_norm, self.mlp_norm = (Norm(config.n_embd, config.norm_weights) for _ in range(2))
        self.attn = CausalSelfAttention(config)
        self.mlp = MLPS[config.mlp](config)

    def __call__(
        self, x: mx.array, attend: Attend, position: int | mx.array, drop_attn: Drop, drop_mlp: Drop
    ) -> mx.array:
        x = x + drop_attn(self.attn(self.attn_norm(x), attend, position))
        return x + drop_mlp(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    """A decoder-only transformer with learned positions.

    Weights are named as in the public export: wte, wpe, lm_head, layers.{i}.attn.{wq,wk,wv,wo} and
    layers.{i}.mlp.{fc1,fc2}. The config's extensions, all off by default, add mlp.fc_gate and the norms' weights, or
    leave out wpe or lm_head. How it is computed may be chosen freely: `attend` is one of attention's ways, `remat`
    makes gradients recompute each block from its input instead of keeping what is inside.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, seed: int = 0):
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.attend, self.remat = make_attend(), False
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.layers = [Block(config) for _ in range(config.n_layer)]
        if config.final_norm:
            self.final_norm = Norm(config.n_embd, config.norm_weights)
        if not config.tied_head:
            self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        self.set_weights(initial_weights(config, vocab_size, seed))

    def compute_as(self, speed: SpeedConfig) -> None:
        """Takes the ways to compute from the settings."""
        self.attend, self.remat = make_attend(speed.attention, speed.query_blocks), speed.remat

    def __call__(self, tokens) -> mx.array:
        """Logits (B, T, V) of token ids (B, T). Raises UserError for ids or lengths out of range."""
        try:
            tokens = mx.array(tokens)
        except (TypeError, ValueError):
            raise UserError("tokens: not an array of whole numbers of shape (B, T)") from None
        if tokens.ndim != 2 or tokens.size == 0 or not mx.issubdtype(tokens.dtype, mx.integer):
            raise UserError(f"tokens: {tokens.dtype} of shape {tokens.shape}; whole numbers of shape (B, T) are needed")
        if tokens.shape[1] > self.config.block_size:
            raise UserError(f"tokens: {tokens.shape[1]} positions, the model has block_size={self.config.block_size}")
        low, high = mx.min(tokens).item(), mx.max(tokens).item()
        if low < 0 or high >= self.vocab_size:
            raise UserError(f"tokens: ids from {low} to {high}, the vocabulary has 0 to {self.vocab_size - 1}")
        return self.forward(tokens)

    def forward(
        self, tokens: mx.array, *, cache: KVCache | None = None, dropout_key: mx.array | None = None, first_row: int = 0
    ) -> mx.array:
        """Logits (B, T, V). Nothing is checked: MLX reads garbage for an id or a position out of range.

        Dropout acts where a key is given; `first_row` is this batch's place in a larger one.
        """
        T, S = tokens.shape[1], self.config.block_size
        read_before = cache is not None and not cache.empty
        hidden = hide_future(S, cache.places(T)) if read_before else None
        position = cache.positions if read_before else 0
        x = self.wte(tokens)  # (B, T, C)
        if "wpe" in self:
            x = x + (self.wpe(cache.places(T)) if read_before else self.wpe.weight[:T])
        drops = self._drops(dropout_key, first_row)
        for i, block in enumerate(self.layers):
            attend = with_past(self.attend, cache, i, hidden) if cache else self.attend
            run = partial(block, attend=attend, position=position, drop_attn=drops[2 * i], drop_mlp=drops[2 * i + 1])
            x = run(x) if dropout_key is None else self._trained(block, run, x)
        if cache:
            cache.advance(T)
        if "final_norm" in self:
            x = self.final_norm(x)
        return self.lm_head(x) if "lm_head" in self else self.wte.as_linear(x)

    def apply(self, weights: dict[str, mx.array], tokens: mx.array, **options) -> mx.array:
        """forward() as a pure function of the weights; the model keeps its own."""
        own = self.weights()
        self.set_weights(weights)
        try:
            return self.forward(tokens, **options)
        finally:
            self.set_weights(own)

    def weights(self) -> dict[str, mx.array]:
        """Every weight by its dotted name, sorted."""
        return dict(sorted(tree_flatten(self.parameters())))

    def set_weights(self, weights: dict[str, mx.array]) -> None:
        self.update(tree_unflatten(list(weights.items())))

    def _trained(self, block: Block, run: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        """run(x), with the block's gradients in an order that frees memory early, recomputed if the model says so."""
        names, weights = zip(*tree_flatten(block.parameters()), strict=True)

        def with_weights(x, *weights):
            block.update(tree_unflatten(list(zip(names, weights, strict=True))))
            return run(x)

        return (mx.checkpoint(with_weights) if self.remat else with_weights)(*weights_first(x, *weights))

    def _drops(self, key: mx.array | None, first_row: int) -> list[Drop]:
        """Two functions a block, each of which drops by a mask of its own."""
        count, rate = 2 * self.config.n_layer, self.config.dropout
        if key is None or rate == 0:
            return [lambda x: x] * count
        return [partial(rng.dropout, rate=rate, key=k, first_row=first_row) for k in rng.split(key, count)]


def initial_weights(config: ModelConfig, vocab_size: int, seed: int) -> dict[str, mx.array]:
    """Normal weights: 0.02, positions 0.01, the two matrices that write to the residual 0.02 / sqrt(2 * n_layer).

    Weights of norms are ones.
    """
    residual_std = 0.02 / (2 * config.n_layer) ** 0.5
    stds = {"wpe": 0.01, "wo": residual_std, "fc2": residual_std}

    def draw(i: int, name: str, shape: tuple[int, ...]) -> mx.array:
        if len(shape) == 1:  # a norm's
            return mx.ones(shape)
        return mx.random.normal(shape, key=rng.key(seed, rng.INIT, i)) * stds.get(name.split(".")[-2], 0.02)

    shapes = config.weight_shapes(vocab_size)
    return {name: draw(i, name, shape) for i, (name, shape) in enumerate(shapes.items())}
