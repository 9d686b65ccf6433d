"""The settings of a run: five tables of typed, range-checked values. All defaults are defined in this module.

The help text of a setting is also its comment in run.toml.
"""

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any, Self

from mlx_gpt.config.renames import current_names
from mlx_gpt.config.table import Table, checked, lookup, merge, nest, setting, toml_value
from mlx_gpt.errors import UserError

# The value of train.iters if only train.minutes limits the run. The trainer replaces it after timing some updates.
# The largest vocabulary that is read: more ids than Unicode has code points, or than any published vocabulary has.
MAX_VOCAB = 1 << 21
UNTIL_TIME_IS_UP = (1 << 32) - 1
# The sizes of randyGPT's network. An RGPT file does not store them, so they can be given to commands that read one.
SHAPE_KEYS = ("n_embd", "n_head", "n_layer", "block_size")


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
        "factor by which rotary positions reach further than n_embd / n_head channels at rope_theta (NTK)",
        low=1.0,
        high=1e6,
    )
    norm_eps: float = setting(1e-5, "added to the mean square in every RMSNorm", low=1e-12, high=1e-2)
    qk_norm: bool = setting(False, "apply RMSNorm to the queries and keys of each head")
    norm_weights: bool = setting(False, "give every RMSNorm of the residual stream one learned weight per channel")
    final_norm: bool = setting(False, "apply RMSNorm before the output head")
    tied_head: bool = setting(False, "use the token embedding as the weight of the output head")
    mixers: tuple[str, ...] = setting(("attention",), "sequence mixer of each layer; a short list is repeated")
    ffn: str = setting("relu2", "feed-forward network: relu2 (squared ReLU) or swiglu (gated)")
    ffn_dim: int = setting(
        0, "hidden width of the feed-forward network; 0 is 4 n_embd, or 8/3 n_embd for swiglu", low=0, high=1 << 20
    )
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
    residual: str = setting("add", "how outputs of mixer and feed-forward network join the residual stream")

    def __post_init__(self):
        if type(self.ternary_group) is int:  # as in TOML: ternary_group = 128
            object.__setattr__(self, "ternary_group", str(self.ternary_group))
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
        if self.n_kv_head and self.n_head % self.n_kv_head:
            divisors = [h for h in range(1, self.n_head + 1) if self.n_head % h == 0]
            raise UserError(
                f"model.n_kv_head={self.n_kv_head} does not divide model.n_head={self.n_head}; "
                f"choose n_kv_head from {', '.join(map(str, divisors))}"
            )
        if self.rope_scale != 1 and self.head_dim == 2:
            raise UserError("model.rope_scale needs a head width above 2; choose fewer heads, or rope_scale=1")
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
        """Base of the rotary frequencies in use: rope_theta * rope_scale^(D / (D - 2)) for the head width D.

        With NTK-aware scaling, the lowest frequency is divided by rope_scale, and the highest frequency is unchanged.
        """
        if self.rope_scale == 1:
            return self.rope_theta
        return self.rope_theta * self.rope_scale ** (self.head_dim / (self.head_dim - 2))

    @property
    def ffn_width(self) -> int:
        """Width F of the feed-forward network's hidden layer: `ffn_dim`, or its default if that is 0."""
        return self.ffn_dim or self._default_ffn_dim

    @property
    def _default_ffn_dim(self) -> int:
        """4 C, or for swiglu 8/3 C rounded up to a multiple of 8, where C is n_embd.

        SwiGLU has three matrices and relu2 has two, so 8/3 C gives both about the same number of weights, 8 C^2.
        """
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
        """The mixer of each layer, (n_layer,)."""
        return tuple(self.mixers[i % len(self.mixers)] for i in range(self.n_layer))

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Table):
    """The length of a run, its batches, its objective, and how often it evaluates, samples and saves.

    An update is one optimizer step.
    """

    batch_size: int = setting(16, "sequences per micro-batch", low=1, high=1 << 16)
    grad_accum_steps: int = setting(1, "micro-batches per update", low=1, high=4096)
    iters: int = setting(
        2000, "total number of updates, counted from the start of the run", low=1, high=UNTIL_TIME_IS_UP
    )
    minutes: float = setting(
        0.0, "time limit in minutes; iters is reduced to the updates that fit; 0 is no limit", low=0.0, high=1e6
    )
    shuffle: bool = setting(True, "read each document once per epoch; false draws windows with replacement")
    seed: int = setting(1337, "random seed of initial weights, batches and dropout", low=0, high=(1 << 63) - 1)
    objective: str = setting("cross-entropy", "training loss")
    dtype: str = setting("float32", "compute dtype; weights stay float32", choices=("float32", "bfloat16", "float16"))
    eval_every: int = setting(100, "updates between evaluations", low=1, high=1 << 31)
    eval_windows: int = setting(0, "random windows per evaluation; 0 is the whole split", low=0, high=1 << 20)
    eval_at_start: bool = setting(False, "evaluate before the first update too")
    sample_every: int = setting(-1, "updates between text samples; 0 is never, -1 at each evaluation", low=-1)
    save_minutes: float = setting(
        5.0, "minutes between checkpoints; 0 saves only at a new best loss and at the end", low=0.0
    )
    log_every: int = setting(10, "updates between log lines if stdout is not a terminal", low=1, high=1 << 31)
    patience: int = setting(
        10, "evaluations in a row without a new best loss before stopping; 0 is never", low=0, high=1 << 31
    )

    @property
    def sequences_per_step(self) -> int:
        """Sequences per update."""
        return self.batch_size * self.grad_accum_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig(Table):
    """The optimizer, its learning-rate schedule, gradient clipping and the moving average of the weights."""

    name: str = setting(
        "muon",
        "optimizer; muon is AdamW outside the blocks' matrices; lion needs learning rates about ten times lower",
        choices=("adamw", "muon", "lion"),
    )
    learning_rate: float = setting(3e-3, "peak learning rate", low=0.0, high=10.0)
    muon_lr_scale: float = setting(
        20 / 3, "learning rate of the matrices that Muon updates, as a multiple of the learning rate", low=0.0, high=1e6
    )
    schedule: str = setting(
        "wsd",
        "learning rate after warm-up: cosine and wsd are constant, then decay (wsd linearly); linear decays at once",
        choices=("cosine", "linear", "wsd"),
    )
    min_learning_rate: float = setting(0.0, "final learning rate", low=0.0, high=10.0)
    warmup_steps: int = setting(20, "updates of linear warm-up, from a tenth of the peak rate", low=0, high=1 << 31)
    decay_start: float = setting(0.6, "fraction of the run after which cosine and wsd decay", low=0.0, high=1.0)
    max_lr_cuts: int = setting(
        0, "times that the peak rate is reduced, instead of stopping, when patience runs out", low=0, high=100
    )
    lr_cut: float = setting(0.5, "factor of each such reduction", low=0.0, high=1.0)
    beta1: float = setting(
        0.9, "decay rate of AdamW's first moment; interpolation factor of lion", low=0.0, high=0.999999
    )
    beta2: float = setting(
        0.99, "decay rate of AdamW's second moment; decay rate of lion's momentum", low=0.0, high=0.999999
    )
    momentum: float = setting(0.95, "decay rate of muon's momentum", low=0.0, high=0.999999)
    eps: float = setting(1e-8, "added to the square root of AdamW's second moment", low=0.0, high=1.0)
    weight_decay: float = setting(
        0.1, "decoupled weight decay of all weights, except gates and similar small parameters", low=0.0, high=10.0
    )
    ema_decay: float = setting(
        0.0, "decay rate of the exponential moving average of the weights; 0 keeps none", low=0.0, high=0.999999
    )
    clip_mode: str = setting(
        "global",
        "gradient clipping: by the norm of all tensors, by the norm of each, by element, or none",
        choices=("global", "tensor", "element", "none"),
    )
    max_grad_norm: float = setting(
        1.0, "largest L2 norm of the gradients, or absolute value of an element, after clipping", low=1e-9, high=1e9
    )

    def __post_init__(self):
        Table.__post_init__(self)
        for name in ("learning_rate", "muon_lr_scale", "lr_cut"):
            if getattr(self, name) == 0:
                raise UserError(f"optimizer.{name}=0 is not allowed; give a number above 0, such as 1e-3")
        if self.min_learning_rate > self.learning_rate:
            raise UserError(
                f"optimizer.min_learning_rate={self.min_learning_rate:g} is above "
                f"optimizer.learning_rate={self.learning_rate:g}; lower it with --min-lr"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedConfig(Table):
    """How a training step is computed. The results differ only by floating-point rounding."""

    attention: str = setting(
        "auto",
        "attention kernel in training: fused is MLX's own, padded is fused with wider heads, blocks splits the queries",
        choices=("auto", "fused", "padded", "blocks"),
    )
    query_blocks: int = setting(4, "number of query blocks if attention is blocks", low=1, high=64)
    lanes: int = setting(
        0, "parts of a batch that are computed concurrently on a CPU; 0 is one per core", low=0, high=256
    )
    remat: bool = setting(False, "recompute each block in the backward pass: less memory, more time")
    ops_per_buffer: int = setting(
        0, "operations per GPU command buffer (MLX_MAX_OPS_PER_BUFFER); 0 is MLX's default", low=0, high=1 << 20
    )
    mb_per_buffer: int = setting(
        0, "megabytes per GPU command buffer (MLX_MAX_MB_PER_BUFFER); 0 is MLX's default", low=0, high=1 << 20
    )
    attention_tile: int = setting(
        0,
        "tile size of the gradient of MLX's own attention on Metal (MLX_SDPA_VJP_BLOCK); 0 is MLX's default",
        low=0,
        high=1 << 20,
    )
    tf32: bool = setting(
        False, "allow TF32, with 10 bits of mantissa, in float32 matrix products on a GPU (MLX_ENABLE_TF32)"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Table):
    """The training text and its tokenizer."""

    corpus: tuple[str, ...] = setting(
        ("pydocs",), "corpus names, files, folders or glob patterns; each may have a weight, as name:2"
    )
    tokenizer: str = setting(
        "char",
        "char: characters; bpe: merged pairs of characters; byte-bpe: merged pairs of bytes",
        choices=("char", "bpe", "byte-bpe"),
    )
    vocab_size: int = setting(2000, "number of ids of a byte-pair vocabulary that is trained", low=3, high=1 << 20)
    bpe_rule: str = setting(
        "lines",
        "rule that trains a bpe vocabulary: lines merges within lines; randygpt learns the vocabulary of randyGPT",
        choices=("lines", "randygpt"),
    )
    vocab: str = setting("", "path of a vocab.json or tokenizer.json to use instead of training a vocabulary")
    unknown: str = setting(
        "drop",
        "characters not in the vocabulary: drop removes and counts them, refuse is an error",
        choices=("drop", "refuse"),
    )
    device_mb: int = setting(
        1024,
        "largest token array, in MB, that is copied to the device; windows of a larger one are read from the host",
        low=0,
        high=1 << 20,
    )
    val_fraction: float = setting(
        0.1,
        "fraction of the tokens of each corpus that is used for validation; they are taken from its end",
        low=1e-6,
        high=0.9,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)

    @classmethod
    def from_dict(cls, tables: dict[str, dict[str, Any]]) -> Self:
        """Builds a config from nested dictionaries, as {"train": {"iters": 500}}. Missing settings have their defaults.

        Raises:
            UserError: A table or setting is unknown, a value is not allowed, or a setting is given under its old and
                its current name.
        """
        tables = current_names(tables)
        require_settings(tables)
        return cls(**{name: TABLES[name](**values) for name, values in tables.items()})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """All settings as nested dictionaries, which `from_dict` reads."""
        return dataclasses.asdict(self)

    def get(self, key: str):
        """The value of a dotted key, as "train.iters"."""
        table, _, name = key.partition(".")
        return getattr(getattr(self, table), name)

    def replace(self, overrides: dict[str, Any]) -> Self:
        """Returns a copy with changed values by dotted name, as {"train.iters": 500}.

        Raises UserError as `from_dict` does.
        """
        return self.from_dict(merge(self.to_dict(), current_names(nest(overrides))))

    def to_toml(self) -> str:
        """All settings as TOML text, each with its help text as a comment. The result is a valid preset file."""
        lines = []
        for name, values in self.to_dict().items():
            helps = {f.name: f.metadata["help"] for f in fields(TABLES[name])}
            lines += [f"[{name}]"] + [f"{k} = {toml_value(v)}  # {helps[k]}" for k, v in values.items()] + [""]
        return "\n".join(lines)


def require_settings(tables: dict[str, Any]) -> None:
    """Checks the names of settings in nested dictionaries, and each value by itself.

    Raises:
        UserError: A table or setting is unknown, or a value is not allowed, whatever the other settings are.
    """
    for name, values in tables.items():
        table = lookup(TABLES, name, "table")
        if not isinstance(values, dict):
            raise UserError(f"{name}={values!r} is not a table; settings look like {name}.key = value")
        known = {f.name: f for f in fields(table)}
        for key, value in values.items():
            checked(f"{name}.{key}", value, lookup(known, key, f"setting in [{name}]", prefix=f"{name}."))


TABLES: dict[str, type[Table]] = {
    "model": ModelConfig,
    "train": TrainConfig,
    "optimizer": OptimizerConfig,
    "data": DataConfig,
    "speed": SpeedConfig,
}
