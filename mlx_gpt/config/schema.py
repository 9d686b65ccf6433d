"""The settings of a run: five tables of typed, range-checked values. Defaults live here and nowhere else."""

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any, Self

from mlx_gpt.config.table import Table, lookup, merge, nest, setting, toml_value
from mlx_gpt.errors import UserError

# Iterations of a run that only its time budget ends, until they are planned.
UNTIL_TIME_IS_UP = (1 << 32) - 1
# The sizes that decide which weights fit.
SHAPE_KEYS = ("n_embd", "n_head", "n_layer", "block_size")
# Old spellings of settings. They are read from headers, run.toml files, presets and --set.
RENAMED = {"model.mlp": "model.ffn", "model.mlp_dim": "model.ffn_dim", "optimizer.lr_cuts": "optimizer.max_lr_cuts"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Table):
    """The shape of the network. The vocabulary size belongs to the tokenizer."""

    n_embd: int = setting(256, "width of the residual stream", low=1, high=65536)
    n_head: int = setting(8, "attention heads; must divide n_embd", low=1, high=1024)
    n_layer: int = setting(6, "transformer blocks", low=1, high=1024)
    block_size: int = setting(256, "longest context, in tokens", low=1, high=1 << 20)
    dropout: float = setting(0.1, "share of each block's output dropped in training", low=0.0, high=0.99)
    positions: str = setting("learned", "position encoding", choices=("learned", "rotary"))
    qk_norm: bool = setting(False, "normalize queries and keys of each head")
    norm_weights: bool = setting(False, "a learned weight for each channel of every norm of the residual stream")
    final_norm: bool = setting(False, "normalize the input of the head")
    tied_head: bool = setting(False, "use the token embedding as the head")
    mixers: tuple[str, ...] = setting(("attention",), "mixer of each layer, repeated over the layers")
    ffn: str = setting("relu2", "feed-forward network: relu2, or swiglu, which is narrower and gated")
    ffn_dim: int = setting(0, "its width; 0 is 4 n_embd, for swiglu 8/3 n_embd", low=0, high=1 << 20)
    linear: str = setting("dense", "form of the blocks' matrices")
    residual: str = setting("add", "how a block's output joins the residual stream")

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
                f"model.positions=rotary needs heads of even width, and model.n_embd={self.n_embd} with "
                f"model.n_head={self.n_head} gives {self.head_dim}; choose other sizes"
            )
        if self.ffn_dim == self._default_ffn_dim:
            object.__setattr__(self, "ffn_dim", 0)  # one spelling of one network

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward network's hidden layer, F."""
        return self.ffn_dim or self._default_ffn_dim

    @property
    def _default_ffn_dim(self) -> int:
        """4 C; for the three matrices of swiglu 8/3 C, rounded up to a multiple of 8."""
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
        """The settings of SHAPE_KEYS."""
        return {k: getattr(self, k) for k in SHAPE_KEYS}

    def architecture(self) -> dict[str, Any]:
        """Every setting that decides what the network computes from its weights."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dropout"}

    def extensions(self) -> list[str]:
        """What this network has that randyGPT's has not, as settings."""
        plain = ModelConfig(**self.shape()).architecture()
        return [f"model.{k}={toml_value(v)}" for k, v in self.architecture().items() if v != plain[k]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Table):
    """The length of a run, its batches, its objective, and how often it evaluates, samples and saves."""

    batch_size: int = setting(16, "sequences per micro-batch", low=1, high=1 << 16)
    grad_accum_steps: int = setting(1, "micro-batches per update", low=1, high=4096)
    iters: int = setting(2000, "updates to reach, counted from the run's start", low=1, high=UNTIL_TIME_IS_UP)
    minutes: float = setting(0.0, "time budget in minutes, fitted to the pace; 0 is none", low=0.0, high=1e6)
    shuffle: bool = setting(True, "read each document once an epoch; false draws windows with replacement")
    seed: int = setting(1337, "seed of weights, batches and dropout", low=0, high=(1 << 63) - 1)
    objective: str = setting("cross-entropy", "what is minimized")
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
        "muon uses AdamW outside the blocks' matrices; lion needs a tenth of their rates",
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
    max_lr_cuts: int = setting(0, "times the peak is cut when patience runs out, before stopping", low=0, high=100)
    lr_cut: float = setting(0.5, "factor of each such cut", low=0.0, high=1.0)
    beta1: float = setting(0.9, "decay of the first moment", low=0.0, high=0.999999)
    beta2: float = setting(0.99, "decay of the second moment", low=0.0, high=0.999999)
    momentum: float = setting(0.95, "decay of muon's momentum", low=0.0, high=0.999999)
    eps: float = setting(1e-8, "added to the root of the second moment", low=0.0, high=1.0)
    weight_decay: float = setting(
        0.1, "decoupled decay of every weight, except gates and mixing logits", low=0.0, high=10.0
    )
    ema_decay: float = setting(0.0, "decay of the average of the weights; 0 keeps no average", low=0.0, high=0.999999)
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
    """How a step is computed. Results differ by rounding only."""

    attention: str = setting("auto", "attention kernel in training", choices=("auto", "fused", "padded", "blocks"))
    query_blocks: int = setting(4, "number of query blocks of the kernel blocks", low=1, high=64)
    lanes: int = setting(0, "parts of a batch computed side by side on a CPU; 0 is one for each core", low=0, high=256)
    remat: bool = setting(False, "recompute each block in the backward pass: less memory, more time")
    ops_per_buffer: int = setting(0, "MLX_MAX_OPS_PER_BUFFER on a GPU; 0 leaves it to MLX", low=0, high=1 << 20)
    mb_per_buffer: int = setting(0, "MLX_MAX_MB_PER_BUFFER on a GPU; 0 leaves it to MLX", low=0, high=1 << 20)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Table):
    """The text and its tokens."""

    corpus: tuple[str, ...] = setting(("pydocs",), "corpus names, files, folders or patterns, as name:weight")
    tokenizer: str = setting("char", "what a token is", choices=("char", "bpe", "byte-bpe"))
    vocab_size: int = setting(2000, "ids that a byte-pair encoding is trained to", low=3, high=1 << 20)
    vocab: str = setting("", "a vocab.json or tokenizer.json to use instead of training one")
    unknown: str = setting(
        "drop", "characters not in the vocabulary: left out with a note, or an error", choices=("drop", "refuse")
    )
    device_mb: int = setting(
        1024,
        "largest size of the tokens in MB that is kept on the device; larger ones are read from disk",
        low=0,
        high=1 << 20,
    )
    val_fraction: float = setting(
        0.1, "share of the tokens of each corpus, at its end, that is used for validation", low=1e-6, high=0.9
    )


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
        for name, values in current_names(tables).items():
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
        return self.from_dict(merge(self.to_dict(), current_names(nest(overrides))))

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


def current_names(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables with every setting under its current name. Raises UserError where one is given under both."""
    renamed = dict(tables)
    for old, new in RENAMED.items():
        (table, old_name), new_name = old.split("."), new.partition(".")[2]
        values = renamed.get(table)
        if not isinstance(values, dict) or old_name not in values:
            continue
        if new_name in values:
            raise UserError(f"{old} is the old name of {new}, and both are given; give only {new}")
        renamed[table] = {new_name if name == old_name else name: value for name, value in values.items()}
    return renamed


def with_old_names(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tables with renamed settings under both names, for JSON that scripts of earlier versions read."""
    named = {table: dict(values) for table, values in tables.items()}
    for old, new in RENAMED.items():
        (table, old_name), new_name = old.split("."), new.partition(".")[2]
        named[table][old_name] = tables[table][new_name]
    return named
