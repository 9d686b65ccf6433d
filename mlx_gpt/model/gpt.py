"""The network: token embedding, blocks and head. With default settings, it is randyGPT's network.

randyGPT has learned position embeddings, RMSNorm without weights, causal attention, squared ReLU, a head that is not
tied to the token embedding, and no final norm.

Shapes: B rows (sequences) in a batch, T tokens in a row, C n_embd, V vocabulary size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from mlx.utils import tree_flatten, tree_unflatten

from mlx_gpt import rng
from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.device.mlx import cast, mx, nn
from mlx_gpt.errors import UserError
from mlx_gpt.model.block import Block, Drop
from mlx_gpt.model.embedding import Embedding
from mlx_gpt.model.ffn.protocol import Aux
from mlx_gpt.model.linear import LINEARS, LinearStack
from mlx_gpt.model.mixers import layer_states, mixer_class
from mlx_gpt.model.norm import Norm
from mlx_gpt.model.positions import Positions
from mlx_gpt.model.specs import Normal, Specs, Weight, prefixed
from mlx_gpt.model.state import ModelState, StateTree


@mx.custom_function
def weights_first(x: mx.array, *weights: mx.array) -> tuple[mx.array, ...]:
    """Returns its arguments. It changes the order of the backward pass, to save memory.

    If a block gets its input x and its weights from this function, the gradients of its weights are computed before the
    gradient of x is passed to the block before it. Without this, MLX may compute the weights' gradients of all blocks
    at the end, and keep until then every activation that they need.
    """
    return x, *weights


@weights_first.vjp
def _(_primals, cotangents, _outputs):
    dx, *dweights = cotangents
    return mx.depends(dx, dweights), *dweights


class GPT(nn.Module):
    """A decoder-only transformer.

    Weights are named as in randyGPT's public export: wte, wpe, lm_head, layers.{i}.attn.{wq,wk,wv,wo} and
    layers.{i}.mlp.{fc1,fc2}. Some settings that randyGPT does not have add weights or leave some out. `specs` lists the
    weights for given settings.

    Args:
        config: The settings of [model].
        vocab_size: V, the number of token ids.
        seed: The seed of the initial weights.
        speed: How to compute. Results differ by rounding only.

    Raises:
        UserError: A setting names a mixer, a feed-forward network or another part that does not exist.
        ValueError: A module has a weight without specs, or specs for a weight that it does not have.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, seed: int = 0, speed: SpeedConfig | None = None):
        super().__init__()
        speed = speed or SpeedConfig()
        self.config = config
        self.vocab_size = vocab_size
        self.remat = speed.remat
        self.wte = Embedding(vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = Embedding(config.block_size, config.n_embd)
        self.layers = [Block(config, i, speed) for i in range(config.n_layer)]
        if config.final_norm:
            self.final_norm = Norm(config.n_embd, config.norm_weights, config.norm_eps)
        if not config.tied_head:
            self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        weights, found = initial_weights(config, vocab_size, seed), self.weights()
        if unlisted := found.keys() - weights.keys():
            raise ValueError(f"weights without specs: {', '.join(sorted(unlisted))}")
        if absent := weights.keys() - found.keys():
            raise ValueError(f"specs for weights that no module has: {', '.join(sorted(absent))}")
        self.set_weights(weights)

    @staticmethod
    def specs(config: ModelConfig, vocab_size: int) -> Specs:
        """Returns the specs of all weights by dotted name, in the order of the tensors in an RGPT file."""
        C, found = config.n_embd, {}
        found["wte.weight"] = Weight((vocab_size, C), Normal(0.02), "embedding")
        if config.positions == "learned":
            found["wpe.weight"] = Weight((config.block_size, C), Normal(0.01), "embedding")
        if not config.tied_head:
            found["lm_head.weight"] = Weight((vocab_size, C), Normal(0.02), "head")
        for i in range(config.n_layer):
            found |= prefixed(f"layers.{i}", Block.specs(config, i))
        if config.final_norm:
            found |= prefixed("final_norm", Norm.specs(C, config.norm_weights))
        return found

    def __call__(self, tokens) -> mx.array:
        """Computes the logits of token ids, after a check of the ids.

        Args:
            tokens: Integers (B, T): an array or nested lists.

        Returns:
            The logits, (B, T, V).

        Raises:
            UserError: The tokens are not integers of shape (B, T), T is greater than block_size, or an id is outside
                the vocabulary.
        """
        try:
            tokens = mx.array(tokens)
        except (TypeError, ValueError):
            raise UserError("tokens: not convertible to an array; give integers of shape (B, T)") from None
        if tokens.ndim != 2 or tokens.size == 0 or not mx.issubdtype(tokens.dtype, mx.integer):
            raise UserError(f"tokens: {tokens.dtype} of shape {tokens.shape}; give one integer or more, as (B, T)")
        if tokens.shape[1] > self.config.block_size:
            raise UserError(f"tokens: {tokens.shape[1]} positions; the limit is block_size={self.config.block_size}")
        low, high = mx.min(tokens).item(), mx.max(tokens).item()
        if low < 0 or high >= self.vocab_size:
            raise UserError(f"tokens: ids from {low} to {high}; the vocabulary has ids 0 to {self.vocab_size - 1}")
        return self.forward(tokens)[0]

    def forward(
        self,
        tokens: mx.array,
        *,
        state: ModelState | None = None,
        valid: mx.array | None = None,
        dropout_key: mx.array | None = None,
        first_row: int = 0,
    ) -> tuple[mx.array, Aux]:
        """Computes the logits without any checks. MLX reads arbitrary memory for ids or positions out of range.

        Args:
            tokens: Ids, (B, T) integer.
            state: The decoding state after the earlier tokens of each row. It is updated in place. None in training.
            valid: (B,) int32, the number of real tokens in each row; the tokens after them are padding. None if there
                is no padding.
            dropout_key: The key of the dropout masks, (2,) uint32. None disables dropout. With a key, the backward pass
                also uses `weights_first` and, if `speed.remat`, gradient checkpointing.
            first_row: The index of tokens[0] among the rows of the whole batch. The dropout masks depend on it.

        Returns:
            The logits, (B, T, V), and the auxiliary outputs, each a mean over the layers that have it.
        """
        B, T = tokens.shape
        positions = state.next(T) if state else Positions(0, T)
        x = self.wte(tokens)  # (B, T, C)
        if "wpe" in self:
            x = x + (self.wpe.weight[:T] if positions.at_start else self.wpe(positions.indices))
        drops = self._drops(dropout_key, first_row)
        s, found = self.layers[0].attn_residual.expand(x), {}
        for i, block in enumerate(self.layers):
            run = partial(
                block,
                state=state.layers[i] if state else None,
                positions=positions,
                valid=valid,
                drop_attn=drops[2 * i],
                drop_mlp=drops[2 * i + 1],
            )
            s, aux = run(s) if dropout_key is None else self._trained(block, run, s)
            for name, value in aux.items():
                found.setdefault(name, []).append(value)
        if state:
            state.advance(B, T, valid)
        x = self.layers[-1].mlp_residual.collapse(s)
        if "final_norm" in self:
            x = self.final_norm(x)
        logits = self.lm_head(x) if "lm_head" in self else self.wte.as_linear(x)
        return logits, {name: sum(values) / len(values) for name, values in found.items()}

    def apply(self, weights: dict[str, mx.array], tokens: mx.array, **options) -> tuple[mx.array, Aux]:
        """Computes forward() with the given weights instead of the model's own, which are not changed.

        This makes the result a pure function of `weights`, of which MLX can take the gradient.
        """
        own = self.weights()
        self.set_weights(weights)
        try:
            return self.forward(tokens, **options)
        finally:
            self.set_weights(own)

    def cast(self, weights: dict[str, mx.array], dtype: str) -> dict[str, mx.array]:
        """Returns the weights in a compute dtype, except those whose specs say that they stay float32."""
        kept = {name for name, weight in self.specs(self.config, self.vocab_size).items() if weight.float32}
        return weights | cast({name: w for name, w in weights.items() if name not in kept}, dtype)

    def weights(self) -> dict[str, mx.array]:
        """Returns every weight by its dotted name, sorted by name."""
        return dict(sorted(tree_flatten(self.parameters())))

    def set_weights(self, weights: dict[str, mx.array]) -> None:
        """Sets each weight that `weights` names, a dictionary from dotted names to new arrays."""
        self.update(tree_unflatten(list(weights.items())))

    def new_state(self, rows: int, room: int | None = None, dtype: mx.Dtype = mx.float32) -> ModelState:
        """Makes the initial decoding state of `rows` rows. Its arrays take no memory until they are evaluated.

        Args:
            rows: B.
            room: The number of tokens that each row can read. None is block_size.
            dtype: The type of the arrays.
        """
        return ModelState(layer_states(self.config, rows, room or self.config.block_size, dtype))

    def state_of(self, tree: StateTree) -> ModelState:
        """Makes a decoding state from its arrays, `ModelState.tree`."""
        positions, arrays = tree
        states = [mixer_class(name).State(a) for name, a in zip(self.config.mixer_of, arrays, strict=True)]
        return ModelState(states, positions)

    def resized(self, layers: list[Any], room: int) -> list[Any]:
        """Returns the arrays of all layers (see ModelState.tree) with room for `room` tokens in each row."""
        return [mixer_class(name).State.resized(a, room) for name, a in zip(self.config.mixer_of, layers, strict=True)]

    def packed(self) -> "GPT":
        """Returns a model for inference, with every linear layer of the blocks replaced by its `pack()`.

        Returns the model itself if `pack` changes no layer, as for dense layers.
        """
        linears = {
            name: module.pack()
            for name, module in self.named_modules()
            if isinstance(module, (*LINEARS.values(), LinearStack))
        }
        own = dict(self.named_modules())
        if all(own[name] is module for name, module in linears.items()):
            return self
        model = GPT(self.config, self.vocab_size)
        model.set_weights(self.weights())
        model.update_modules(tree_unflatten(list(linears.items())))
        return model

    def _trained(self, block: Block, run: Callable[[mx.array], tuple[mx.array, Aux]], s: mx.array):
        """Computes run(s) for training: with `weights_first` and, if `speed.remat`, with gradient checkpointing."""
        names, weights = zip(*tree_flatten(block.parameters()), strict=True)

        # The weights are arguments because weights_first and mx.checkpoint give gradients only for their arguments.
        def with_weights(s, *weights):
            block.update(tree_unflatten(list(zip(names, weights, strict=True))))
            return run(s)

        return (mx.checkpoint(with_weights) if self.remat else with_weights)(*weights_first(s, *weights))

    def _drops(self, key: mx.array | None, first_row: int) -> list[Drop]:
        """Makes the dropout functions: two for each block, each with its own key."""
        count, rate = 2 * self.config.n_layer, self.config.dropout
        if key is None or rate == 0:
            return [lambda x: x] * count
        return [partial(rng.dropout, rate=rate, key=k, first_row=first_row) for k in rng.split(key, count)]


def initial_weights(config: ModelConfig, vocab_size: int, seed: int) -> dict[str, mx.array]:
    """Makes the initial value of every weight. The result is sorted by name.

    The random key of a weight depends on its index in this order. A network with one more weight therefore draws other
    values for the weights after it.
    """
    specs = sorted(GPT.specs(config, vocab_size).items())
    return {name: w.init(w.shape, rng.key(seed, rng.INIT, i)) for i, (name, w) in enumerate(specs)}


def roles_of(config: ModelConfig, vocab_size: int) -> dict[str, str]:
    """Returns the role of every weight by name."""
    return {name: weight.role for name, weight in GPT.specs(config, vocab_size).items()}


def shapes_of(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every weight by name, in the order of the tensors in an RGPT file."""
    return {name: weight.shape for name, weight in GPT.specs(config, vocab_size).items()}
