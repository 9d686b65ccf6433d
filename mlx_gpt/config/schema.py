"""The settings of a run: five tables of typed, range-checked values. Defaults live here and nowhere else."""

import dataclasses
import math
from dataclasses import dataclass, field, fields
from typing import Any, Self

from mlx_gpt.config.table import Table, lookup, merge, nest, setting, toml_value
from mlx_gpt.errors import UserError

# Iterations of a run that only its time budget ends, until they are planned.
UNTIL_TIME_IS_UP = (1 << 32) - 1
# The sizes that decide which weights fit.
SHAPE_KEYS = ("n_embd", "n_head", "n_layer", "block_size")
# What a network may have beyond randyGPT's: the settings of [model] that no RGPT file can hold.
EXTENSION_KEYS = ("positions", "qk_norm", "norm_weights", "final_norm", "tied_head", "mlp")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Table):
    """The shape of the network. The vocabulary size belongs to the tokenizer."""

    n_embd: int = setting(256, "width of the residual stream", low=1, high=65536)
    n_head: int = setting(8, "attention heads; must divide n_embd", low=1, high=1024)
    n_layer: int = setting(6, "transformer blocks", low=1, high=1024)
    block_size: int = setting(256, "longest context, in tokens", low=1, high=1 << 20)
    dropout: float = setting(0.1, "share of each block's output dropped in training", low=0.0, high=0.99)
    positions: str = setting("learned", "how a token knows its place", choices=("learned", "rotary"))
    qk_norm: bool = setting(False, "normalise queries and keys, head by head")
    norm_weights: bool = setting(False, "give every norm of the residual stream a learned weight a channel")
    final_norm: bool = setting(False, "normalise what the head reads")
    tied_head: bool = setting(False, "read logits with the embedding of the tokens, without a head of its own")
    mlp: str = setting("relu2", "the MLP's activation; swiglu is narrower and gated", choices=("relu2", "swiglu"))

    def __post_init__(self):
        Table.__post_init__(self)
        if self.n_embd % self.n_head:
            divisors = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0 and h <= 64]
            raise UserError(
                f"model.n_head={self.n_head} does not divide model.n_embd={self.n_embd}; "
                f"choose n_head from {', '.join(map(str, divisors))}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"model.positions=rotary turns pairs, and model.n_embd={self.n_embd} over model.n_head={self.n_head} "
                f"gives heads {self.head_dim} wide; choose sizes that make them even"
            )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def mlp_dim(self) -> int:
        """Width of the MLP's hidden layer: 4 C, or 8/3 C in three matrices, a multiple of 8."""
        return 4 * self.n_embd if self.mlp == "relu2" else -(-self.n_embd // 3) * 8

    def shape(self) -> dict[str, int]:
        """The settings of SHAPE_KEYS."""
        return {k: getattr(self, k) for k in SHAPE_KEYS}

    def architecture(self) -> dict[str, Any]:
        """Every setting that decides what the network computes from its weights."""
        return self.shape() | {k: getattr(self, k) for k in EXTENSION_KEYS}

    def extensions(self) -> list[str]:
        """What this network has that randyGPT's has not, as settings."""
        plain = ModelConfig(**self.shape()).architecture()
        return [f"model.{k}={toml_value(v)}" for k, v in self.architecture().items() if v != plain[k]]

    def weight_shapes(self, vocab_size: int) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight, sorted by name."""
        C, F = self.n_embd, self.mlp_dim
        block = {f"attn.{w}.weight": (C, C) for w in ("wq", "wk", "wv", "wo")}
        block |= {"mlp.fc1.weight": (F, C), "mlp.fc2.weight": (C, F)}
        block |= {"mlp.fc_gate.weight": (F, C)} if self.mlp == "swiglu" else {}
        block |= {"attn_norm.weight": (C,), "mlp_norm.weight": (C,)} if self.norm_weights else {}
        shapes = {f"layers.{i}.{name}": shape for i in range(self.n_layer) for name, shape in block.items()}
        shapes |= {"wte.weight": (vocab_size, C)}
        shapes |= {} if self.tied_head else {"lm_head.weight": (vocab_size, C)}
        shapes |= {"wpe.weight": (self.block_size, C)} if self.positions == "learned" else {}
        shapes |= {"final_norm.weight": (C,)} if self.final_norm and self.norm_weights else {}
        return dict(sorted(shapes.items()))

    def num_params(self, vocab_size: int) -> int:
        return sum(map(math.prod, self.weight_shapes(vocab_size).values()))

    def step_bytes(self, vocab_size: int, rows: int, by_blocks: bool, remat: bool) -> int:
        """Roughly the peak memory of a float32 training step with `rows` sequences in flight.

        The factors fit measured peaks of model-xs to model-l within a quarter.
        """
        T, C, state = self.block_size, self.n_embd, 5 * self.num_params(vocab_size)  # weights, moments, gradients, new
        block = 18 * T * C + (1.1 if by_blocks else 2.5) * self.n_head * T * T
        activations = self.n_layer * T * C + 3 * block if remat else self.n_layer * block
        return int(4 * (state + rows * (activations + 3 * T * vocab_size)))

    def step_traffic(self, vocab_size: int, tokens: int) -> int:
        """Roughly the bytes that a float32 step of `tokens` reads and writes, kernel by kernel.

        10 passes over the weights (twice for products, gradient, moments, update), 144 over the residual stream's width
        a layer (48 forward, twice that backward), 17 over the scores, of which blocks leave five eighths.
        """
        scores = 17 * 0.625 * self.n_head * self.block_size
        activations = self.n_layer * (144 * self.n_embd + scores) + 6 * vocab_size
        return int(4 * (10 * self.num_params(vocab_size) + tokens * activations))

    def flops_per_token(self, vocab_size: int) -> float:
        """Floating-point operations of one training step, per token: matmuls forward and backward."""
        layers = {k: shape for k, shape in self.weight_shapes(vocab_size).items() if k.startswith("layers.")}
        matmul_params = sum(map(math.prod, layers.values())) + vocab_size * self.n_embd
        return 6 * matmul_params + 12 * self.n_layer * self.n_embd * self.block_size


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Table):
    """How long, how much at a time, how often to look."""

    batch_size: int = setting(16, "sequences per micro-batch", low=1, high=1 << 16)
    grad_accum_steps: int = setting(1, "micro-batches per update", low=1, high=4096)
    iters: int = setting(2000, "updates to reach, counted from the run's start", low=1, high=UNTIL_TIME_IS_UP)
    minutes: float = setting(0.0, "time budget in minutes, fitted to the pace; 0 is none", low=0.0, high=1e6)
    shuffle: bool = setting(True, "read every window once an epoch; false draws with replacement")
    seed: int = setting(1337, "decides weights, batches and dropout", low=0, high=(1 << 63) - 1)
    dtype: str = setting("float32", "compute type; weights stay float32", choices=("float32", "bfloat16", "float16"))
    eval_every: int = setting(100, "updates between evaluations", low=1, high=1 << 31)
    eval_windows: int = setting(0, "random windows per evaluation; 0 reads the whole split", low=0, high=1 << 20)
    eval_at_start: bool = setting(False, "evaluate before the first update too")
    sample_every: int = setting(-1, "updates between samples of text; 0 is never, -1 at each evaluation", low=-1)
    save_minutes: float = setting(5.0, "minutes between checkpoints; 0 saves only at a best and at the end", low=0.0)
    log_every: int = setting(10, "updates between plain log lines", low=1, high=1 << 31)
    patience: int = setting(10, "evaluations without a new best before stopping; 0 is never", low=0, high=1 << 31)

    @property
    def sequences_per_step(self) -> int:
        return self.batch_size * self.grad_accum_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig(Table):
    """The optimizer, its learning-rate schedule, the gradient clip and the average of the weights."""

    name: str = setting(
        "muon",
        "muon is AdamW outside the blocks' matrices; lion wants a tenth of their rates",
        choices=("adamw", "muon", "lion"),
    )
    learning_rate: float = setting(3e-3, "the schedule's peak", low=0.0, high=10.0)
    muon_learning_rate: float = setting(0.02, "the peak for the blocks' matrices under muon", low=0.0, high=10.0)
    schedule: str = setting(
        "wsd",
        "after warm-up: flat then cosine, linear to the end, or flat then linear",
        choices=("cosine", "linear", "wsd"),
    )
    min_learning_rate: float = setting(0.0, "the schedule's end", low=0.0, high=10.0)
    warmup_steps: int = setting(20, "updates of linear warm-up from a tenth of the peak", low=0, high=1 << 31)
    decay_start: float = setting(0.6, "share of the run after which cosine and wsd decay", low=0.0, high=1.0)
    lr_cuts: int = setting(0, "times the peak is cut when patience runs out, before stopping", low=0, high=100)
    lr_cut: float = setting(0.5, "factor of each such cut", low=0.0, high=1.0)
    beta1: float = setting(0.9, "decay of the first moment", low=0.0, high=0.999999)
    beta2: float = setting(0.99, "decay of the second moment", low=0.0, high=0.999999)
    momentum: float = setting(0.95, "decay of muon's momentum", low=0.0, high=0.999999)
    eps: float = setting(1e-8, "added to the root of the second moment", low=0.0, high=1.0)
    weight_decay: float = setting(0.1, "decoupled decay, on every tensor", low=0.0, high=10.0)
    ema_decay: float = setting(0.0, "decay of the average of the weights; 0 keeps none", low=0.0, high=0.999999)
    clip_mode: str = setting("global", "what max_grad_norm bounds", choices=("global", "tensor", "element", "none"))
    max_grad_norm: float = setting(1.0, "bound of the L2 norm, or of each element", low=1e-9, high=1e9)

    def __post_init__(self):
        Table.__post_init__(self)
        for name in ("learning_rate", "muon_learning_rate", "lr_cut"):
            if getattr(self, name) == 0:
                raise UserError(f"optimizer.{name}=0 would never learn; give a positive number, as 1e-3")
        if self.min_learning_rate > self.learning_rate:
            raise UserError(
                f"optimizer.min_learning_rate={self.min_learning_rate:g} is above "
                f"optimizer.learning_rate={self.learning_rate:g}; lower it with --min-lr"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedConfig(Table):
    """How a step is computed: no setting changes what is computed, only how fast and in how much memory."""

    attention: str = setting("auto", "way to attend in training", choices=("auto", "fused", "padded", "blocks"))
    query_blocks: int = setting(4, "blocks of queries, of attention by blocks", low=1, high=64)
    lanes: int = setting(0, "parts of a batch side by side on a CPU; 0 is one a core", low=0, high=256)
    remat: bool = setting(False, "recompute each block in the backward pass: less memory, more time")
    ops_per_buffer: int = setting(0, "MLX_MAX_OPS_PER_BUFFER on a GPU; 0 leaves it to MLX", low=0, high=1 << 20)
    mb_per_buffer: int = setting(0, "MLX_MAX_MB_PER_BUFFER on a GPU; 0 leaves it to MLX", low=0, high=1 << 20)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Table):
    """What is read."""

    corpus: tuple[str, ...] = setting(("pydocs",), "corpus names, files, folders or patterns, as name:weight")
    tokenizer: str = setting("char", "what a token is", choices=("char", "bpe", "byte-bpe"))
    vocab_size: int = setting(2000, "ids that a byte-pair encoding is trained to", low=3, high=1 << 20)
    vocab: str = setting("", "a vocab.json or tokenizer.json to take instead of training one")
    unknown: str = setting(
        "drop", "characters not in the vocabulary: left out and told of, or an error", choices=("drop", "refuse")
    )
    device_mb: int = setting(
        1024, "tokens of up to so many MB lie on the device; more are read from disk", low=0, high=1 << 20
    )
    val_fraction: float = setting(0.1, "last share of the tokens, kept for validation", low=1e-6, high=0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)

    @classmethod
    def from_dict(cls, tables: dict[str, dict[str, Any]]) -> Self:
        """Builds a config from plain tables; an unknown table or key is refused with the nearest name."""
        made = {}
        for name, values in tables.items():
            table = lookup(TABLES, name, "table")
            if not isinstance(values, dict):
                raise UserError(f"{name}={values!r} is not a table; settings look like {name}.key = value")
            known = {f.name: f for f in fields(table)}
            for key in values:
                lookup(known, key, f"setting in [{name}]", prefix=f"{name}.")
            made[name] = table(**values)
        return cls(**made)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)

    def get(self, key: str):
        """The value of a dotted key, as "train.iters"."""
        table, _, name = key.partition(".")
        return getattr(getattr(self, table), name)

    def replace(self, overrides: dict[str, Any]) -> Self:
        """The same run with dotted keys changed, as {"train.iters": 500}."""
        return self.from_dict(merge(self.to_dict(), nest(overrides)))

    def to_toml(self) -> str:
        lines = []
        for name, values in self.to_dict().items():
            helps = {f.name: f.metadata["help"] for f in fields(TABLES[name])}
            lines += [f"[{name}]"] + [f"{k} = {toml_value(v)}  # {helps[k]}" for k, v in values.items()] + [""]
        return "\n".join(lines)


TABLES: dict[str, type[Table]] = {
    "model": ModelConfig,
    "train": TrainConfig,
    "optimizer": OptimizerConfig,
    "data": DataConfig,
    "speed": SpeedConfig,
}
