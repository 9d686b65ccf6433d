"""The training step: one compiled function of explicit state.

Gathers a batch on the device, runs forward and backward, sums over the group, clips, and updates, or leaves everything
as it was where the loss or the gradient is not finite. Traced once: whatever changes from step to step enters as an
array.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlx.utils import tree_flatten, tree_map

from mlx_gpt import rng
from mlx_gpt.config.schema import Config
from mlx_gpt.device.lanes import divide, lanes
from mlx_gpt.device.mlx import cast, mx
from mlx_gpt.optim.clip import CLIPS, global_norm
from mlx_gpt.train.objective import Objective, Scalars
from mlx_gpt.train.parallel import Group

# float16 gradients of a mean over thousands of tokens would underflow; the other types have float32's range.
LOSS_SCALE = {"float32": 1.0, "bfloat16": 1.0, "float16": 1024.0}

State = dict[str, Any]


class StepOutput(NamedTuple):
    """Device scalars: mean loss, gradient norm before the clip, whether the update was made, the objective's means."""

    loss: mx.array
    grad_norm: mx.array
    finite: mx.array
    metrics: Scalars


def initial_state(weights: dict[str, mx.array], optimizer) -> State:
    """The state before the first step."""
    return {"weights": weights, "optimizer": optimizer.init(weights)}


def make_loss(model, objective: Objective, config: Config):
    """loss(weights, part, count, dropout_key, first_row) -> (loss, metrics).

    loss: the part's sum / count * LOSS_SCALE. metrics: the part's sums.
    """
    dtype = config.train.dtype

    def loss(weights, part: NamedTuple, count: mx.array, dropout_key: mx.array, first_row: int):
        logits, aux = model.apply(cast(weights, dtype), part.inputs, dropout_key=dropout_key, first_row=first_row)
        total, metrics = objective(logits, aux, part)
        return total / count * LOSS_SCALE[dtype], metrics

    return loss


def make_gradients(model, objective: Objective, group: Group, config: Config):
    """gradients(weights, batch, dropout_key) -> (loss, metrics, gradients), of the whole batch of all ranks."""
    loss, scale = make_loss(model, objective, config), LOSS_SCALE[config.train.dtype]

    def gradients(weights, batch: NamedTuple, dropout_key: mx.array):
        count = group.sum(objective.count(batch))

        def of_part(arrays, first_row):
            part = type(batch)(*arrays)
            return mx.value_and_grad(loss)(weights, part, count, dropout_key, first_row)

        (value, metrics), grads = group.sum(over_lanes(of_part, batch, config))
        value, grads = tree_map(lambda x: x / scale, (value, grads))
        return value, {name: total / count for name, total in metrics.items()}, grads

    return gradients


def over_lanes(run: Callable, arrays: Sequence[mx.array], config: Config):
    """The sum of run(part, first_row) over the parts of a batch.

    Lanes compute side by side. The parts of one lane follow each other.
    """
    train, sums = config.train, {}
    parts = divide(len(arrays[0]), train.batch_size, lanes(config.speed.lanes), config.model.block_size)
    for first, end, lane in parts:
        with mx.stream(lane):
            part, before = [a[first:end] for a in arrays], sums.get(lane)
            if before is not None:  # frees the memory of one part before the next one starts
                part = mx.depends(part, [a for _, a in tree_flatten(before)])
            new = run(part, first)
            sums[lane] = new if before is None else tree_map(mx.add, before, new)
    return tree_map(lambda *xs: sum(xs), *sums.values())


def make_step(model, optimizer, objective: Objective, gather: Callable[..., NamedTuple], group: Group, config: Config):
    """Compiles step(state, lr, index, *arrays) -> (state, StepOutput).

    Args:
        model: The network; its own weights are not used.
        optimizer: Gives new weights and a new state from gradients.
        objective: What is minimized.
        gather: Builds the batch from `arrays`.
        group: The processes that train together.
        config: The run.

    The compiled function takes the state, the learning rate, the index of the step (uint32), which decides the dropout,
    and the host arrays of the source.
    """
    train, bound = config.train, config.optimizer.max_grad_norm
    clip = CLIPS[config.optimizer.clip_mode]
    gradients = make_gradients(model, objective, group, config)

    @mx.compile
    def step(state: State, lr: mx.array, index: mx.array, *arrays: mx.array) -> tuple[State, StepOutput]:
        batch = gather(*arrays)
        loss, metrics, grads = gradients(state["weights"], batch, rng.key(train.seed, rng.DROPOUT, index))
        norm = global_norm(grads)
        finite = mx.isfinite(loss) & mx.isfinite(norm)
        grads = clip(grads, bound, norm)
        weights, opt_state = optimizer.update(state["weights"], grads, state["optimizer"], lr)
        new = {"weights": weights, "optimizer": opt_state}
        return tree_map(lambda a, b: mx.where(finite, a, b), new, state), StepOutput(loss, norm, finite, metrics)

    return step
