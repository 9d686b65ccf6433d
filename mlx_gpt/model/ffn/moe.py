"""Mixture of experts (arXiv:2101.03961, arXiv:2401.04088): a router chooses a few of many SwiGLU networks for a token.

Shapes: B rows (sequences), T tokens in a row, N = B T, C n_embd, E experts, k experts per token, F width of an expert.
"""

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.ffn.dense import SwiGLU
from mlx_gpt.model.ffn.protocol import Aux
from mlx_gpt.model.ffn.routing import arrange, block_product, block_size, collect, spread
from mlx_gpt.model.linear import LinearStack
from mlx_gpt.model.specs import Normal, Specs, Weight, prefixed


class MixtureOfExperts(nn.Module):
    """The k most likely of E experts compute a token, and are weighted by the softmax of their logits.

    Equal logits choose the expert of the lower number. With `model.n_shared_expert`, a SwiGLU network of as many times
    the width computes every token too.

    The auxiliary outputs, each a mean over the tokens of a row, then over the rows:

        balance: E sum over e of f_e p_e, where f_e is the share of the row's choices that are expert e, and p_e the
            mean probability of e: 1 if all experts are used alike, E if a single one is used.
        router_z: The squared logarithm of the sum of the exponentials of the router's logits.
        max_load, min_load: The share of the busiest expert and of the least busy one, as multiples of 1 / E.
        experts.idle: The share of the experts that no token of all rows has chosen.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.router = mx.zeros((config.n_expert, config.n_embd))
        for name, (outputs, inputs) in _shapes(config).items():
            setattr(self, name, LinearStack(config, config.n_expert, inputs, outputs))
        if config.n_shared_expert:
            self.shared = SwiGLU(config, config.n_shared_expert * config.ffn_width)

    @staticmethod
    def specs(config: ModelConfig) -> Specs:
        E, C = config.n_expert, config.n_embd
        found = {"router": Weight((E, C), Normal(0.02), "scalar", float32=True)}
        for name, (outputs, inputs) in _shapes(config).items():
            std = 0.02 / (2 * config.n_layer) ** 0.5 if name == "fc2" else 0.02
            found |= prefixed(name, LinearStack.specs(config, E, inputs, outputs, Normal(std)))
        if config.n_shared_expert:
            found |= prefixed("shared", SwiGLU.specs(config, config.n_shared_expert * config.ffn_width))
        return found

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]:
        B, T, C = x.shape
        E, k = self.config.n_expert, self.config.n_expert_per_token
        logits = x.astype(mx.float32) @ self.router.T
        experts = choose(logits, k)  # (B, T, k)
        shares = mx.softmax(mx.take_along_axis(logits, experts, axis=-1), axis=-1)
        tokens, assigned = x.reshape(-1, C), mx.stop_gradient(experts).reshape(-1)
        blocks = arrange(assigned, E, block_size(len(assigned), E))
        rows = spread(tokens, blocks.rows, blocks.sources)

        def product(inputs: mx.array, stack: LinearStack) -> mx.array:
            return block_product(stack.prepared(inputs), stack.matrices().astype(x.dtype), blocks.experts)

        hidden = nn.silu(product(rows, self.fc_gate)) * product(rows, self.fc1)
        found = collect(product(hidden, self.fc2), blocks.rows, blocks.sources).reshape(B, T, k, C)
        y = (found * shares[..., None].astype(x.dtype)).sum(axis=2)
        if "shared" in self:
            y = y + self.shared(x)[0]
        return y, _statistics(logits, experts, E)


def choose(logits: mx.array, count: int) -> mx.array:
    """Returns the numbers (..., count) of the largest logits (..., E). Of equal ones, the lower number comes first."""
    found, left = [], mx.stop_gradient(logits)
    for _ in range(count):
        best = mx.argmax(left, axis=-1, keepdims=True)
        found.append(best)
        left = mx.where(mx.arange(logits.shape[-1]) == best, -mx.inf, left)
    return mx.concatenate(found, axis=-1)


def _statistics(logits: mx.array, experts: mx.array, num_experts: int) -> Aux:
    """The auxiliary outputs. `logits` is (B, T, E), and `experts` (B, T, k)."""
    chosen = (experts[..., None] == mx.arange(num_experts)).sum(axis=2).astype(mx.float32)  # (B, T, E)
    loads = chosen.mean(axis=1) / experts.shape[-1]  # f, (B, E)
    chances = mx.softmax(logits, axis=-1).mean(axis=1)  # p, (B, E)
    return {
        "balance": num_experts * (loads * chances).sum(axis=-1).mean(),
        "router_z": mx.square(mx.logsumexp(logits, axis=-1)).mean(),
        "max_load": num_experts * loads.max(axis=-1).mean(),
        "min_load": num_experts * loads.min(axis=-1).mean(),
        "experts.idle": (chosen.sum(axis=(0, 1)) == 0).astype(mx.float32).mean(),
    }


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The outputs and inputs of an expert's matrices."""
    C, F = config.n_embd, config.ffn_width
    return {"fc1": (F, C), "fc_gate": (F, C), "fc2": (C, F)}
