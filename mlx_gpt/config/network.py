"""The settings of the network: the table [model]."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from mlx_gpt.config.table import Table, setting, toml_value
from mlx_gpt.errors import UserError

# The sizes of randyGPT's network. An RGPT file does not store them, so they can be given to commands that read one.
SHAPE_KEYS = ("n_embd", "n_head", "n_layer", "block_size")


class LatentWidths(NamedTuple):
    """Widths of latent attention: of the latent, and per head of the parts without and with positions and the value."""

    latent: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Table):
    """The architecture of the network. The vocabulary size is not a setting, because the tokenizer determines it."""

    n_embd: int = setting(256, "width of the residual stream", low=1, high=65536)
    n_head: int = setting(8, "attention heads; must divide n_embd", low=1, high=1024)
    n_kv_head: int = setting(
        0, "heads of keys and values, each shared by n_head / n_kv_head query heads; 0 is n_head", low=0, high=1024
    )
    n_layer: int = setting(6, "transformer blocks", low=1, high=1024)
    block_size: int = setting(256, "longest context, in tokens", low=1, high=1 << 20)
    dropout: float = setting(0.1, "dropout rate of the outputs of mixer and feed-forward network", low=0.0, high=0.99)
    positions: str = setting("learned", "position encoding", choices=("learned", "rotary"))
    rope_theta: float = setting(1e4, "base of the rotary frequencies", low=1.0, high=1e12)
    rope_scale: float = setting(
        1.0,
        "factor by which rotary positions reach further than at rope_theta (NTK)",
        low=1.0,
        high=1e6,
    )
    norm_eps: float = setting(1e-5, "added to the mean square in every RMSNorm", low=1e-12, high=1e-2)
    qk_norm: bool = setting(False, "apply RMSNorm to the queries and keys of each head")
    norm_weights: bool = setting(False, "give every RMSNorm of the residual stream one learned weight per channel")
    final_norm: bool = setting(False, "apply RMSNorm before the output head")
    tied_head: bool = setting(False, "use the token embedding as the weight of the output head")
    mixers: tuple[str, ...] = setting(("attention",), "sequence mixer of each layer; a short list is repeated")
    delta_ratio: float = setting(
        0.0, "share of the layers whose mixer is gated_delta, evenly spread; 0 is as in mixers", low=0.0, high=1.0
    )
    kv_lora_rank: int = setting(
        0, "width of the latent of keys and values in mla; 0 is n_embd / 4", low=0, high=1 << 16
    )
    q_lora_rank: int = setting(0, "width of the latent of queries in mla; 0 is no latent", low=0, high=1 << 16)
    qk_nope_head_dim: int = setting(
        0, "channels of a query or key without rotary positions in mla; 0 is n_embd / n_head", low=0, high=1 << 16
    )
    qk_rope_head_dim: int = setting(
        0, "channels of a query or key with rotary positions in mla; 0 is half of n_embd / n_head", low=0, high=1 << 16
    )
    v_head_dim: int = setting(0, "channels of a value in mla; 0 is n_embd / n_head", low=0, high=1 << 16)
    ffn: str = setting("relu2", "feed-forward network: relu2 (squared ReLU), swiglu (gated) or moe (experts)")
    ffn_dim: int = setting(
        0,
        "hidden width of the feed-forward network or of an expert; 0 is 4 n_embd, or 8/3 n_embd for swiglu, of which "
        "the experts of a token have equal parts",
        low=0,
        high=1 << 20,
    )
    n_expert: int = setting(8, "experts of a layer, if ffn is moe", low=1, high=1024)
    n_expert_per_token: int = setting(2, "experts that compute a token", low=1, high=1024)
    n_shared_expert: int = setting(0, "experts that compute every token", low=0, high=64)
    linear: str = setting(
        "dense",
        "linear layers of the blocks: dense; ternary, weights of -1, 0 and 1 times a scale; or ternary-packed, the "
        "same for inference only",
    )
    ternary_group: str = setting(
        "tensor",
        "weights that share a scale in a ternary layer: all of the matrix, a row, or 128 or 64 of a row",
        choices=("tensor", "row", "128", "64"),
    )
    ternary_activations: str = setting(
        "float", "inputs of ternary layers: float, or int8 (rounded to 8 bits per token)", choices=("float", "int8")
    )
    ternary_norm: bool = setting(False, "apply RMSNorm to the input of every ternary layer")
    residual: str = setting(
        "add", "how outputs of mixer and feed-forward network join the residual stream: add, or mhc (mixed streams)"
    )
    n_stream: int = setting(2, "residual streams, 2 or 4, if residual is mhc", low=2, high=4)

    def __post_init__(self):
        # Not super(): without arguments, it fails in a dataclass with slots=True before Python 3.14.
        Table.__post_init__(self)
        if self.n_embd % self.n_head:
            divisors = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0 and h <= 64]
            raise UserError(
                f"model.n_head={self.n_head} does not divide model.n_embd={self.n_embd}; "
                f"choose n_head from {', '.join(map(str, divisors))}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"model.positions=rotary needs an even head width, but model.n_embd={self.n_embd} with "
                f"model.n_head={self.n_head} gives a head width of {self.head_dim}; choose other sizes"
            )
        if self.qk_rope_head_dim % 2:
            raise UserError(
                f"model.qk_rope_head_dim={self.qk_rope_head_dim} is odd, but rotary positions rotate pairs; "
                f"choose {self.qk_rope_head_dim + 1}"
            )
        if self.n_kv_head and self.n_head % self.n_kv_head:
            divisors = [h for h in range(1, self.n_head + 1) if self.n_head % h == 0]
            raise UserError(
                f"model.n_kv_head={self.n_kv_head} does not divide model.n_head={self.n_head}; "
                f"choose n_kv_head from {', '.join(map(str, divisors))}"
            )
        if self.rope_scale != 1 and 2 in (self.head_dim, self.mla.rope if "mla" in self.mixers else 0):
            raise UserError(
                "model.rope_scale needs more than 2 rotary channels in a head; choose fewer heads, a larger "
                "model.qk_rope_head_dim, or rope_scale=1"
            )
        if self.n_stream == 3:
            raise UserError("model.n_stream=3 is not allowed; give 2 or 4")
        if self.n_expert_per_token > self.n_expert:
            raise UserError(
                f"model.n_expert_per_token={self.n_expert_per_token} is above model.n_expert={self.n_expert}; give "
                f"1 to {self.n_expert}"
            )
        if self.n_kv_head == self.n_head:
            object.__setattr__(self, "n_kv_head", 0)  # so that configs of the same network compare equal
        if self.ffn_dim == self._default_ffn_dim:
            object.__setattr__(self, "ffn_dim", 0)

    @property
    def head_dim(self) -> int:
        """Width of each attention head, n_embd / n_head."""
        return self.n_embd // self.n_head

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: `n_kv_head`, or n_head if that is 0."""
        return self.n_kv_head or self.n_head

    @property
    def rope_base(self) -> float:
        """Base of the rotary frequencies of attention, whose heads have head_dim rotary channels."""
        return self.rope_base_of(self.head_dim)

    def rope_base_of(self, width: int) -> float:
        """Returns the base of the rotary frequencies of `width` channels: rope_theta rope_scale^(width / (width - 2)).

        With NTK-aware scaling, the lowest frequency is divided by rope_scale, and the highest frequency is unchanged.
        """
        return self.rope_theta if self.rope_scale == 1 else self.rope_theta * self.rope_scale ** (width / (width - 2))

    @property
    def ffn_width(self) -> int:
        """Width F of the feed-forward network's hidden layer: `ffn_dim`, or its default if that is 0."""
        return self.ffn_dim or self._default_ffn_dim

    @property
    def _default_ffn_dim(self) -> int:
        """4 C, or for swiglu 8/3 C rounded up to a multiple of 8, where C is n_embd.

        SwiGLU has three matrices and relu2 has two, so 8/3 C gives both about the same number of weights, 8 C^2. The
        experts that compute a token have this number of weights together.
        """
        if self.ffn == "moe":
            return -(-self.n_embd // (3 * self.n_expert_per_token)) * 8
        return -(-self.n_embd // 3) * 8 if self.ffn == "swiglu" else 4 * self.n_embd

    @property
    def mlp(self) -> str:
        """Old name of `ffn`."""
        return self.ffn

    @property
    def mlp_dim(self) -> int:
        """Old name of `ffn_width`."""
        return self.ffn_width

    @property
    def mixer_of(self) -> tuple[str, ...]:
        """The mixer of each layer, (n_layer,).

        With `delta_ratio`, n = round(n_layer * delta_ratio) layers have gated_delta: those with the numbers
        floor((2 k + 1) n_layer / (2 n)) for k = 0 to n - 1.
        """
        count = round(self.n_layer * self.delta_ratio)
        spread = {(2 * k + 1) * self.n_layer // (2 * count) for k in range(count)}
        return tuple("gated_delta" if i in spread else self.mixers[i % len(self.mixers)] for i in range(self.n_layer))

    @property
    def mla(self) -> "LatentWidths":
        """The widths of latent attention."""
        half = max(self.head_dim // 4 * 2, 2)  # rotary positions need an even number of channels
        return LatentWidths(
            latent=self.kv_lora_rank or max(self.n_embd // 4, 1),
            nope=self.qk_nope_head_dim or self.head_dim,
            rope=self.qk_rope_head_dim or half,
            value=self.v_head_dim or self.head_dim,
        )

    def shape(self) -> dict[str, int]:
        """The settings named in SHAPE_KEYS, as {"n_embd": 256, ...}."""
        return {k: getattr(self, k) for k in SHAPE_KEYS}

    def architecture(self) -> dict[str, Any]:
        """All settings that determine the network's function of its weights: all except dropout."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dropout"}

    def extensions(self) -> list[str]:
        """The settings in which this network differs from randyGPT's of the same size, as ['model.tied_head=true']."""
        plain = ModelConfig(**self.shape()).architecture()
        return [f"model.{k}={toml_value(v)}" for k, v in self.architecture().items() if v != plain[k]]
