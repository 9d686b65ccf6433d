"""The settings of a run: six tables of typed, range-checked values. All defaults are defined in this module.

The help text of a setting is also its comment in run.toml.
"""

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any, Self

from mlx_gpt.config.network import SHAPE_KEYS as SHAPE_KEYS
from mlx_gpt.config.network import ModelConfig as ModelConfig
from mlx_gpt.config.renames import current_names
from mlx_gpt.config.table import Table, checked, lookup, merge, nest, setting, toml_value
from mlx_gpt.errors import UserError

# The largest vocabulary that is read: more ids than Unicode has code points, or than any published vocabulary has.
MAX_VOCAB = 1 << 21
# The value of train.iters if only train.minutes limits the run. The trainer replaces it after timing some updates.
UNTIL_TIME_IS_UP = (1 << 32) - 1
MOST_MICRO_BATCHES = 4096  # micro-batches of an update, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Table):
    """The length of a run, its batches, its objective, and how often it evaluates, samples and saves.

    An update is one optimizer step.
    """

    batch_size: int = setting(16, "sequences per micro-batch", low=1, high=1 << 16)
    grad_accum_steps: int = setting(1, "micro-batches per update", low=1, high=MOST_MICRO_BATCHES)
    iters: int = setting(
        2000, "total number of updates, counted from the start of the run", low=1, high=UNTIL_TIME_IS_UP
    )
    tokens: int = setting(
        0, "length of the run in tokens, from which iters follows; 0: iters is the length", low=0, high=10**15
    )
    minutes: float = setting(
        0.0, "time limit in minutes; iters is reduced to the updates that fit; 0 is no limit", low=0.0, high=1e6
    )
    shuffle: bool = setting(True, "read each document once per epoch; false draws windows with replacement")
    seed: int = setting(1337, "random seed of initial weights, batches and dropout", low=0, high=(1 << 63) - 1)
    sync_every: int = setting(
        0,
        "updates that each process makes by itself before the weights are averaged (DiLoCo); 0 sums the gradients of "
        "each update",
        low=0,
        high=1 << 20,
    )
    min_ranks: int = setting(
        0,
        "with sync_every, the run goes on after a loss of processes if at least this number remains; 0 ends it",
        low=0,
        high=1 << 16,
    )
    objective: str = setting("cross-entropy", "training loss")
    balance_weight: float = setting(
        0.01, "weight of the loss that balances the loads of experts, if model.ffn is moe", low=0.0, high=1e3
    )
    router_z_weight: float = setting(
        0.001, "weight of the loss that keeps their router's logits small", low=0.0, high=1e3
    )
    entropy_weight: float = setting(
        0.0, "weight with which the entropy of the predictions is subtracted from the loss", low=0.0, high=1e3
    )
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

    def __post_init__(self):
        Table.__post_init__(self)
        if self.min_ranks and not self.sync_every:
            raise UserError(
                f"train.min_ranks={self.min_ranks} needs train.sync_every above 0, because a run goes on from an "
                "exchange of weights; give train.sync_every, such as 50"
            )
        for name in ("eval_every", "sample_every"):
            value = getattr(self, name)
            if self.sync_every and value > 0 and value % self.sync_every:
                raise UserError(
                    f"train.{name}={value} is not a multiple of train.sync_every={self.sync_every}, and the processes "
                    f"have different weights in between; give a multiple, such as "
                    f"{-(-value // self.sync_every) * self.sync_every}"
                )

    @property
    def length(self) -> int | None:
        """The number of updates; None if only the time limit ends the run."""
        return None if self.iters == UNTIL_TIME_IS_UP else self.iters

    @property
    def sequences_per_step(self) -> int:
        """Sequences per update."""
        return self.batch_size * self.grad_accum_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig(Table):
    """The optimizer, its learning-rate schedule, gradient clipping and the moving average of the weights."""

    name: str = setting(
        "normuon",
        "optimizer; muon and normuon are AdamW, and muon-lion is Lion, outside the blocks' matrices; Lion needs rates "
        "about ten times lower",
        choices=("adamw", "muon", "normuon", "lion", "muon-lion"),
    )
    learning_rate: float = setting(3e-3, "peak learning rate", low=0.0, high=10.0)
    muon_lr_scale: float = setting(
        20 / 3, "learning rate of the matrices that Muon updates, as a multiple of the learning rate", low=0.0, high=1e6
    )
    newton_schulz: str = setting(
        "polar",
        "iteration that makes the updates of muon and normuon orthogonal: five equal steps (jordan), or the first "
        "three of the Polar Express (polar), which need less time",
        choices=("jordan", "polar"),
    )
    schedule: str = setting(
        "wsd",
        "learning rate after warm-up: cosine and wsd are constant, then decay (wsd linearly); linear decays at once; "
        "wsd-cosine is cosine with a warm-up from 0",
        choices=("cosine", "linear", "wsd", "wsd-cosine"),
    )
    min_learning_rate: float = setting(0.0, "final learning rate", low=0.0, high=10.0)
    warmup_steps: int = setting(20, "updates of linear warm-up, from a tenth of the peak rate", low=0, high=1 << 31)
    decay_start: float = setting(0.6, "fraction of the run after which cosine and wsd decay", low=0.0, high=1.0)
    outer_learning_rate: float = setting(
        1.0,
        "learning rate of the update with the average of the processes, if train.sync_every is given",
        low=0.0,
        high=10.0,
    )
    outer_momentum: float = setting(0.0, "Nesterov momentum of that update", low=0.0, high=0.999999)
    max_lr_cuts: int = setting(
        0, "times that the peak rate is reduced, instead of stopping, when patience runs out", low=0, high=100
    )
    lr_cut: float = setting(0.5, "factor of each such reduction", low=0.0, high=1.0)
    beta1: float = setting(
        0.9, "decay rate of AdamW's first moment; interpolation factor of lion", low=0.0, high=0.999999
    )
    beta2: float = setting(
        0.99,
        "decay rate of the second moments of AdamW and normuon; decay rate of lion's momentum",
        low=0.0,
        high=0.999999,
    )
    momentum: float = setting(0.95, "decay rate of the momentum of muon and normuon", low=0.0, high=0.999999)
    eps: float = setting(
        1e-8, "added to the square roots of the second moments of AdamW and normuon", low=0.0, high=1.0
    )
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
    divide_muon: bool = setting(
        True,
        "divide muon's orthogonalization over the processes of a run; they then exchange the matrices' updates, which "
        "are as large as their gradients",
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
    fim_rate: float = setting(
        0.0,
        "share of the training windows that are rearranged for fill-in-the-middle: prefix, suffix, middle",
        low=0.0,
        high=1.0,
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
class RLConfig(Table):
    """Reinforcement learning: what is drawn from the model, and how it is rewarded. See rl/objectives.py."""

    reward: str = setting("compiles", "reward of a text: compiles, tests, or FILE.py, with a function reward")
    execute: bool = setting(False, "allow the reward to execute programs of the model, in a sandbox")
    prompts: str = setting("", "JSON Lines file of prompts; empty takes those of the language")
    language: str = setting("python", "programming language of the texts")
    prompts_per_batch: int = setting(8, "prompts in a batch", low=1, high=1 << 16)
    group_size: int = setting(8, "texts that are drawn for each prompt", low=1, high=1 << 16)
    max_tokens: int = setting(128, "most tokens of a text", low=1, high=1 << 20)
    temperature: float = setting(1.0, "temperature of the draws, and of the policy", low=0.01, high=100.0)
    epochs: int = setting(1, "updates with each batch", low=1, high=1000)
    clip: float = setting(
        0.0, "largest change of a ratio of probabilities; 0 is the objective's default", low=0.0, high=1.0
    )
    kl_weight: float = setting(0.02, "weight of the divergence from the model before training", low=0.0, high=1e3)
    success: float = setting(1.0, "reward from which on a text is a success, for maxrl and rft", low=-1e9, high=1e9)
    tau: float = setting(1.0, "temperature of maxrl's weights", low=1e-3, high=1e9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    rl: RLConfig = field(default_factory=RLConfig)

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
    "rl": RLConfig,
}
