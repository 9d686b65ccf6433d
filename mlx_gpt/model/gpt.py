"""The network: token embedding, blocks, head. Its defaults are randyGPT's network.

randyGPT has learned positions, weightless RMSNorm, causal attention, squared ReLU, an untied head and no final norm.

Shapes: B batch, T time, C n_embd, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

from mlx.utils import tree_flatten, tree_unflatten

from mlx_gpt import rng
from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.errors import UserError
from mlx_gpt.model.block import Block, Drop
from mlx_gpt.model.ffn.protocol import Aux
from mlx_gpt.model.linear import LINEARS
from mlx_gpt.model.mixers import layer_states, mixer_class
from mlx_gpt.model.norm import Norm
from mlx_gpt.model.positions import Positions
from mlx_gpt.model.specs import Normal, Specs, Weight, prefixed
from mlx_gpt.model.state import ModelState, StateTree


@mx.custom_function
def weights_first(x: mx.array, *weights: mx.array) -> tuple[mx.array, ...]:
    """Returns its arguments. In the backward pass the gradients of the weights come before anything that needs x's.

    MLX would leave those gradients for the end, and keep every activation that they need until then.
    """
    return x, *weights


@weights_first.vjp
def _(_primals, cotangents, _outputs):
    dx, *dweights = cotangents
    return mx.depends(dx, dweights), *dweights


class GPT(nn.Module):
    """A decoder-only transformer.

    Weights are named as in randyGPT's public export: wte, wpe, lm_head, layers.{i}.attn.{wq,wk,wv,wo} and
    layers.{i}.mlp.{fc1,fc2}. Settings beyond randyGPT's add weights or leave some out; `specs` says which.

    Args:
        config: The network.
        vocab_size: V, the number of token ids.
        seed: Decides the initial weights.
        speed: How to compute. Results differ by rounding only.

    Raises:
        UserError: A setting names a part that does not exist.
        ValueError: A module has a weight that its specs do not list, or lists one that it has not.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, seed: int = 0, speed: SpeedConfig | None = None):
        super().__init__()
        speed = speed or SpeedConfig()
        self.config = config
        self.vocab_size = vocab_size
        self.remat = speed.remat
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.layers = [Block(config, i, speed) for i in range(config.n_layer)]
        if config.final_norm:
            self.final_norm = Norm(config.n_embd, config.norm_weights)
        if not config.tied_head:
            self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        weights, found = initial_weights(config, vocab_size, seed), self.weights()
        if unlisted := found.keys() - weights.keys():
            raise ValueError(f"weights without specs: {', '.join(sorted(unlisted))}")
        if absent := weights.keys() - found.keys():
            raise ValueError(f"specs of weights that no module has: {', '.join(sorted(absent))}")
        self.set_weights(weights)

    @staticmethod
    def specs(config: ModelConfig, vocab_size: int) -> Specs:
        """Every weight by its dotted name, in the order of an RGPT file."""
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
        """Logits (B, T, V) and the sums of the layers' aux. Nothing is checked: MLX reads garbage out of range.

        Args:
            tokens: Ids (B, T).
            state: What was read before; it is moved on by these tokens. None where nothing was and nothing is kept.
            valid: (B,), how many tokens of each row count; those after them are padding. None where all of them do.
            dropout_key: Key of the dropout masks; None drops nothing.
            first_row: Row of the whole batch that tokens[0] is. Dropout depends on it.
        """
        B, T = tokens.shape
        positions = state.next(T) if state else Positions(0, T)
        x = self.wte(tokens)  # (B, T, C)
        if "wpe" in self:
            x = x + (self.wpe.weight[:T] if positions.at_start else self.wpe(positions.indices))
        drops = self._drops(dropout_key, first_row)
        s, totals = self.layers[0].attn_residual.expand(x), {}
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
            totals = {name: totals[name] + value if name in totals else value for name, value in aux.items()}
        if state:
            state.advance(B, T, valid)
        x = self.layers[-1].mlp_residual.collapse(s)
        if "final_norm" in self:
            x = self.final_norm(x)
        return self.lm_head(x) if "lm_head" in self else self.wte.as_linear(x), totals

    def apply(self, weights: dict[str, mx.array], tokens: mx.array, **options) -> tuple[mx.array, Aux]:
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

    def new_state(self, rows: int, dtype: mx.Dtype = mx.float32) -> ModelState:
        """The state of `rows` rows before anything was read. Its arrays take no memory until they are evaluated."""
        return ModelState(layer_states(self.config, rows, dtype))

    def state_of(self, tree: StateTree) -> ModelState:
        """The state that `ModelState.tree` gave."""
        positions, arrays = tree
        states = [mixer_class(name).State(a) for name, a in zip(self.config.mixer_of, arrays, strict=True)]
        return ModelState(states, positions)

    def packed(self) -> "GPT":
        """The model with its linear layers in the form used for inference; itself where that is the trained form."""
        linears = {
            name: module.pack() for name, module in self.named_modules() if isinstance(module, tuple(LINEARS.values()))
        }
        own = dict(self.named_modules())
        if all(own[name] is module for name, module in linears.items()):
            return self
        model = GPT(self.config, self.vocab_size)
        model.set_weights(self.weights())
        model.update_modules(tree_unflatten(list(linears.items())))
        return model

    def _trained(self, block: Block, run: Callable[[mx.array], tuple[mx.array, Aux]], s: mx.array):
        """run(s), with the block's gradients in an order that frees memory early, recomputed if the model says so."""
        names, weights = zip(*tree_flatten(block.parameters()), strict=True)

        def with_weights(s, *weights):
            block.update(tree_unflatten(list(zip(names, weights, strict=True))))
            return run(s)

        return (mx.checkpoint(with_weights) if self.remat else with_weights)(*weights_first(s, *weights))

    def _drops(self, key: mx.array | None, first_row: int) -> list[Drop]:
        """Two functions a block, each of which drops by a mask of its own."""
        count, rate = 2 * self.config.n_layer, self.config.dropout
        if key is None or rate == 0:
            return [lambda x: x] * count
        return [partial(rng.dropout, rate=rate, key=k, first_row=first_row) for k in rng.split(key, count)]


def initial_weights(config: ModelConfig, vocab_size: int, seed: int) -> dict[str, mx.array]:
    """The initial value of every weight, sorted by name. The key of a weight is its place in this order."""
    specs = sorted(GPT.specs(config, vocab_size).items())
    return {name: w.init(w.shape, rng.key(seed, rng.INIT, i)) for i, (name, w) in enumerate(specs)}


def roles_of(config: ModelConfig, vocab_size: int) -> dict[str, str]:
    """The role of every weight by its name."""
    return {name: weight.role for name, weight in GPT.specs(config, vocab_size).items()}


def shapes_of(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every weight by its name, in the order of an RGPT file."""
    return {name: weight.shape for name, weight in GPT.specs(config, vocab_size).items()}
