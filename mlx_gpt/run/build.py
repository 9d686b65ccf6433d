"""Builds the trainer of a run, with its model, its optimizer and its data, from the run's initial state."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gpt.checkpoint.store import Header, Tensors
from mlx_gpt.config.budget import tokens_per_update
from mlx_gpt.config.schema import Config
from mlx_gpt.data.corpus import Corpus, open_corpus
from mlx_gpt.data.encoding import encode
from mlx_gpt.data.fim import FillInTheMiddle
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.lanes import divide, lanes
from mlx_gpt.device.mlx import DTYPES, mx, set_variables
from mlx_gpt.device.report import prepare
from mlx_gpt.errors import OutOfRoom, UserError
from mlx_gpt.model.cost import step_bytes
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.model.mixers.kernels import kernel_of
from mlx_gpt.model.packing import PACKED
from mlx_gpt.optim.optimizers import Divide, Optimizer
from mlx_gpt.rl.prompts import training_prompts
from mlx_gpt.rl.rewards import make_reward
from mlx_gpt.rl.rollout import RolloutSource
from mlx_gpt.run.request import Note
from mlx_gpt.train.evaluate import Evaluator, Validation
from mlx_gpt.train.objectives import ROLLOUT_OBJECTIVES, make_objective
from mlx_gpt.train.parallel import Alone, Group, divided
from mlx_gpt.train.source import Source, TextSource
from mlx_gpt.train.statistics import Statistics
from mlx_gpt.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The initial state of a run.

    Attributes:
        header: Settings and progress.
        weights: Weights by name; None to initialize them.
        optimizer: Optimizer tensors by name, such as "m.wte.weight"; None to initialize them.
        corpus: The text.
        tokenizer: The tokenizer of the text.
        folder: The run folder in which the run continues; None for a new folder.
        tokens: The encoded text; None if it has not been encoded yet.
        corrupt: The corrupt checkpoints of the run folder.
        chosen: One line that names the settings that follow from the length of the run; "" if none was chosen.
        fit: Fits those of these settings that count updates to another `train.iters`.
    """

    header: Header
    weights: Tensors | None
    optimizer: Tensors | None
    corpus: Corpus
    tokenizer: Tokenizer
    folder: Path | None
    tokens: Tokens | None = None
    corrupt: tuple[Path, ...] = ()
    chosen: str = ""
    fit: Callable[[Config], Config] = lambda config: config

    @property
    def is_complete(self) -> bool:
        """Whether the run has already reached `train.iters`, and evaluated its last weights.

        A run that a signal ended before its last evaluation is not complete, unless it is beyond `train.iters`. A
        checkpoint of another program has no evaluations (its `tokens` is 0): it is complete if its step has reached
        `train.iters`.
        """
        header, train = self.header, self.header.config.train
        is_evaluated = header.last_eval == header.step or header.tokens == 0
        return header.step > train.iters or (header.step == train.iters and is_evaluated)

    def end(self) -> str:
        """Says how far a complete run is, and which lengths continue it."""
        header, train = self.header, self.header.config.train
        lengths = [f"--iters {header.step + 1} or more"]
        if header.tokens and train.objective not in ROLLOUT_OBJECTIVES:
            lengths.append(f"--tokens {header.tokens + tokens_per_update(header.config)} or more")
        if train.minutes:
            lengths.append(f"--minutes above {max(train.minutes, header.elapsed / 60):.4g}")
        of = f" of {train.length}" if train.length else ""
        return f"already at step {header.step}{of}, nothing to do; to train further, give {', or '.join(lengths)}"


def open_text(config: Config, note: Note) -> Corpus:
    """Opens the corpus that `data.corpus` names. Passes each message about it to `note`."""
    corpus = open_corpus(config.data.corpus)
    for line in corpus.notes:
        note(line)
    return corpus


def require_known_length(config: Config, settings: dict[str, Any]) -> None:
    """Raises UserError if `settings` gives a length in tokens and the objective is one of rewards."""
    if config.train.objective in ROLLOUT_OBJECTIVES and (tokens := settings.get("train.tokens")):
        raise UserError(
            f"train.tokens={tokens}: with train.objective={config.train.objective} the model writes the texts itself, "
            "and their length is not known before; give the number of updates with --iters"
        )


def make_trainer(start: Start, folder: Path, note: Note, group: Group | None = None) -> Trainer:
    """Builds the trainer of a run. Puts the model on the device, and also the text if it fits into `data.device_mb`.

    Args:
        start: The initial state.
        folder: The run folder, in which the trainer writes checkpoints. It is not created here.
        note: Called with one line for each thing the user should know.
        group: The processes that train together; None if this one trains alone.

    Raises:
        UserError: The text is too short, or it has characters that `data.unknown=refuse` forbids; or there are more
            processes than sequences in an update.
        OutOfRoom: A training step does not fit into memory.
    """
    config, tokenizer, group = start.header.config, start.tokenizer, group or Alone()
    if config.model.linear == PACKED:
        raise UserError(
            f"model.linear={PACKED} cannot be trained, because its matrices have no float32 weights; train a network "
            "with model.linear=ternary"
        )
    set_variables(config.speed)  # first: MLX reads these environment variables once, when the device is first used
    prepare(config.train.dtype)
    require_rows(config, group.size)
    require_memory(config, tokenizer.vocab_size, group.size)
    train, val = _windows(start, note)
    model = GPT(config.model, tokenizer.vocab_size, config.train.seed, config.speed)
    if start.weights:
        model.set_weights({name: mx.array(w) for name, w in start.weights.items()})
    return Trainer(
        header=start.header,
        model=model,
        optimizer=Optimizer(config.optimizer, roles_of(config.model, tokenizer.vocab_size), _divide(config, group)),
        optimizer_state=start.optimizer,
        objective=make_objective(config),
        source=_source(start, model, train, folder, note),
        validation=Validation(
            Evaluator(model, val, tokenizer.token_bytes(), config.train.dtype, group), val, config.train
        ),
        statistics=Statistics(config.model),
        group=group,
        folder=folder,
        fit=start.fit,
    )


def _divide(config: Config, group: Group) -> Divide | None:
    """How the processes divide the orthogonalization of Muon. In local steps, each has other gradients."""
    is_divided = config.speed.divide_muon and not config.train.sync_every
    return functools.partial(divided, group) if is_divided else None


def _source(start: Start, model: GPT, windows: Windows, folder: Path, note: Note) -> Source:
    """The source of the objective's batches: windows of the text, or texts that the model writes."""
    config = start.header.config
    objective = ROLLOUT_OBJECTIVES.get(config.train.objective)
    if objective is None:
        rate = config.data.fim_rate
        fim = FillInTheMiddle(rate, start.tokenizer, config.train.seed) if rate else None
        return TextSource(windows, config.train, fim)
    return RolloutSource(
        config=config,
        tokenizer=start.tokenizer,
        problems=training_prompts(config.rl),
        reward=make_reward(config.rl),
        advantages=objective.advantages,
        needs_success=objective.needs_success,
        reference=None if start.header.step else model.weights(),
        num_tokens=windows.num_tokens,
        folder=folder,
        note=note,
    )


def require_rows(config: Config, processes: int) -> None:
    """Raises UserError unless the settings fit the number of processes.

    Each process gets a sequence of every update, from a source that can be divided.
    """
    rows, objective, min_ranks = config.train.sequences_per_step, config.train.objective, config.train.min_ranks
    if rows < processes:
        raise UserError(
            f"train.batch_size={config.train.batch_size}: an update has {rows} sequences, but {processes} processes "
            f"divide them; give at least {processes} with --batch, or start fewer processes"
        )
    if processes > 1 and min_ranks > processes:
        raise UserError(
            f"train.min_ranks={min_ranks}: the run has {processes} processes; give at most {processes}, or start more"
        )
    if processes > 1 and objective in ROLLOUT_OBJECTIVES:
        raise UserError(f"train.objective={objective} trains in one process, not in {processes}; start one process")


def require_memory(config: Config, vocab_size: int, processes: int = 1) -> None:
    """Raises OutOfRoom if a training step needs more memory than MLX may use.

    Without this check, the system would kill the process without a message.
    """
    speed, train = config.speed, config.train
    streams = lanes(speed.lanes)
    rows, rows_at_once = (-(-n // processes) for n in (train.sequences_per_step, train.batch_size))
    parts = divide(rows, rows_at_once, streams, config.model.block_size)
    # The most sequences that are computed at the same time: one part on each lane.
    rows = min(len(streams), len(parts)) * max(end - first for first, end, _ in parts)
    kernel = kernel_of(speed.attention, config.model.head_dim, config.model.block_size, DTYPES[train.dtype])
    needed = step_bytes(config.model, vocab_size, rows, kernel == "blocks", speed.remat)
    if needed > mx.get_memory_limit():
        raise OutOfRoom(
            f"a training step with batches of {config.train.batch_size} sequences needs about {needed / 1e9:.1f} GB, "
            f"but MLX may use only {mx.get_memory_limit() / 1e9:.1f} GB here; lower --batch and raise --accum by the "
            "same factor, or choose a smaller --preset"
        )


def _windows(start: Start, note: Note) -> tuple[Windows, Windows]:
    """Encodes the text. Returns the windows of its training split and of its validation split."""
    data, block_size = start.header.config.data, start.header.config.model.block_size
    tokens = start.tokens or encode(start.corpus, start.tokenizer, note, data.unknown == "refuse")
    on_device = tokens.fits(data.device_mb)
    train, val = tokens.split(data.val_fraction)
    if len(train) <= block_size or len(val) < 2:
        shorter = len(train) // 4  # a context that this text is long enough for
        raise UserError(
            f"corpus {start.corpus.name}: has {len(train)} training and {len(val)} validation tokens, but training "
            f"needs at least {block_size + 1} and validation at least 2; give a longer text"
            + (f", or --set model.block_size={shorter}" if shorter >= 8 and len(val) > 1 else "")
        )
    # Windows that are rearranged are read on the host.
    return Windows(train, block_size, on_device and not data.fim_rate), Windows(val, block_size, on_device)
