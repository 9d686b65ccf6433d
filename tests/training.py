"""Makes a trainer on random tokens, and compares the reports and states of runs."""

import numpy as np

from mlx_gpt.checkpoint.store import Header
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.optim.optimizers import Optimizer
from mlx_gpt.train.evaluate import Evaluator, Validation
from mlx_gpt.train.objective import CrossEntropy
from mlx_gpt.train.parallel import Alone
from mlx_gpt.train.reports import EvalReport, StepReport
from mlx_gpt.train.source import TextSource
from mlx_gpt.train.statistics import Statistics
from mlx_gpt.train.trainer import Trainer

V = 13


def tokens(size, seed):
    """Returns a document of `size` random ids, from 2 to V - 1."""
    return Tokens.of(np.random.default_rng(seed).integers(2, V, size).astype(np.uint8), [size])


def validation(model, config, group=None):
    windows = Windows(tokens(200, 1), config.model.block_size)
    return Validation(Evaluator(model, windows, np.ones(V, np.int32), config.train.dtype, group), windows, config.train)


def trainer(folder, config, checkpoint=None, lag=0, group=None, source=None):
    """Returns a trainer of a new run, or of a run that continues from a checkpoint.

    Args:
        folder: The run folder.
        config: The settings of the model, the optimizer and the data, and of a new run.
        checkpoint: The checkpoint to continue from. The settings of the run are those in its header.
        lag: The number of submitted steps whose results are not read yet: 0 as on a CPU, 1 as on a GPU.
        group: The processes that train together; None for one.
        source: The source of batches; None for a text.
    """
    group = group or Alone()
    checkpoint = checkpoint and checkpoint.as_trained()
    header = checkpoint.header if checkpoint else Header(config=config, vocab_size=V, step=0, num_updates=0)
    model, block_size = GPT(config.model, V, config.train.seed), config.model.block_size
    if checkpoint:
        model.set_weights({k: mx.array(w) for k, w in checkpoint.weights.items()})
    made = Trainer(
        header=header,
        model=model,
        optimizer=Optimizer(config.optimizer, roles_of(config.model, V)),
        optimizer_state=checkpoint.optimizer if checkpoint else None,
        objective=CrossEntropy(config),
        source=source or TextSource(Windows(tokens(800, 0), block_size), config.train),
        validation=validation(model, config, group),
        statistics=Statistics(config.model),
        group=group,
        folder=folder,
    )
    made.pipeline.lag = lag
    return made


def timeless(reports):
    """Returns the fields of step and evaluation reports that do not depend on the clock. Leaves out other reports."""
    keep = {
        StepReport: ("step", "loss", "grad_norm", "lr", "tokens", "skipped"),
        EvalReport: ("step", "loss", "raw_loss", "best_loss", "best_step", "bad_evals", "lr_cuts"),
    }
    return [(type(r).__name__, *(getattr(r, k) for k in keep[type(r)])) for r in reports if type(r) in keep]


def assert_same_state(a, b):
    """Asserts that two checkpoints have equal weights, optimizer states and positions of the run."""
    for ours, theirs in ((a.weights, b.weights), (a.optimizer, b.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(t, theirs[k]) for k, t in ours.items())
    for field in ("step", "num_updates", "best_loss", "best_step", "bad_evals", "num_lr_cuts", "tokens", "source"):
        assert getattr(a.header, field) == getattr(b.header, field), field
