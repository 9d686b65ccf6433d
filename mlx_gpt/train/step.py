"""The training step: one compiled function that takes the training state and returns the new one.

The step gathers a batch on the device, runs the forward and backward pass, sums the gradients over the processes, clips
them, and updates the weights. If the loss or the gradient norm is not finite, it returns the state unchanged.

mx.compile traces the step once. Whatever changes from step to step is therefore an array argument: a Python number
would become a constant of the graph.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlx.utils import tree_flatten, tree_map

from mlx_gpt import rng
from mlx_gpt.config.schema import Config
from mlx_gpt.device.lanes import divide, lanes
from mlx_gpt.device.mlx import mx
from mlx_gpt.optim.clip import CLIPS, global_norm
from mlx_gpt.train.objective import Objective, Scalars
from mlx_gpt.train.parallel import Group, share

# Factor of the loss in the backward pass, by compute dtype. The gradients are divided by it afterwards. The loss is a
# mean over thousands of tokens, so many of its gradients are too small for float16 and would become zero. bfloat16 has
# the exponent range of float32 and needs no scaling.
LOSS_SCALE = {"float32": 1.0, "bfloat16": 1.0, "float16": 1024.0}

State = dict[str, Any]


class StepOutput(NamedTuple):
    """The results of a step, as scalars on the device.

    Attributes:
        loss: Mean loss of the batch, () float32.
        grad_norm: L2 norm of all gradients before clipping, () float32.
        finite: Whether loss and grad_norm are finite, () bool. If not, the update was skipped.
        metrics: Further means that the objective reports, () float32 each.
    """

    loss: mx.array
    grad_norm: mx.array
    finite: mx.array
    metrics: Scalars


def initial_state(weights: dict[str, mx.array], optimizer) -> State:
    """Returns the training state before the first step: the weights and a new optimizer state."""
    return {"weights": weights, "optimizer": optimizer.init(weights)}


def make_loss(model, objective: Objective, config: Config):
    """Makes loss(weights, part, count, dropout_key, first_row) -> (loss, metrics), the loss of a part of a batch.

    The arguments are the float32 weights, some rows of this process's batch, the objective's count summed over the
    batches of all processes, the dropout key, and the index of the part's first row in the batch of all processes.
    `loss` is the objective's sum over the part, divided by `count` and multiplied by LOSS_SCALE. `metrics` are the
    objective's other sums over the part.
    """
    dtype = config.train.dtype

    def loss(weights, part: NamedTuple, count: mx.array, dropout_key: mx.array, first_row: int):
        logits, aux = model.apply(model.cast(weights, dtype), part.inputs, dropout_key=dropout_key, first_row=first_row)
        total, metrics = objective(logits, aux, part)
        return total / count * LOSS_SCALE[dtype], metrics

    return loss


def make_gradients(model, objective: Objective, group: Group, config: Config):
    """Makes gradients(weights, batch, dropout_key) -> (loss, metrics, gradients).

    `batch` is the batch of this process. The results are for the batches of all processes together: the mean loss, the
    means that the objective reports, and the gradient of the mean loss by weight.
    """
    loss, scale = make_loss(model, objective, config), LOSS_SCALE[config.train.dtype]
    first_of_rank = share(group, config.train.sequences_per_step).start

    def gradients(weights, batch: NamedTuple, dropout_key: mx.array):
        count = group.sum(objective.count(batch))

        def of_part(arrays, first_row):
            part = type(batch)(*arrays)
            return mx.value_and_grad(loss)(weights, part, count, dropout_key, first_of_rank + first_row)

        # Every part was divided by the count of the whole batch, so the sums are the mean loss and its gradient.
        (value, metrics), grads = group.sum(over_lanes(of_part, batch, config, group.size))
        value, grads = tree_map(lambda x: x / scale, (value, grads))
        return value, {name: total / count for name, total in metrics.items()}, grads

    return gradients


def over_lanes(run: Callable, arrays: Sequence[mx.array], config: Config, processes: int = 1):
    """Runs a function on the parts of a batch and adds the results.

    The parts are assigned to lanes, which are MLX streams (see `device/lanes.py`). Lanes run concurrently. The parts of
    one lane run one after the other, so that memory holds the activations of at most one part per lane.

    Args:
        run: run(part, first_row) -> a tree of arrays. `part` is a list of some rows of each of `arrays`, and
            `first_row` is the index of its first row.
        arrays: Arrays whose first axis is the row of the batch.
        config: The settings of the run. `arrays` hold the rows of all `train.grad_accum_steps` micro-batches. A lane
            computes at most `train.batch_size` / lanes rows at once, rounded up, so it accumulates their gradients.
        processes: The number of processes that divide a micro-batch.

    Returns:
        The sum of the trees.
    """
    train, sums = config.train, {}
    rows_at_once = -(-train.batch_size // processes)
    parts = divide(len(arrays[0]), rows_at_once, lanes(config.speed.lanes), config.model.block_size)
    for first, end, lane in parts:
        with mx.stream(lane):
            part, before = [a[first:end] for a in arrays], sums.get(lane)
            if before is not None:  # starts this part when the one before it on this lane has freed its memory
                part = mx.depends(part, [a for _, a in tree_flatten(before)])
            new = run(part, first)
            sums[lane] = new if before is None else tree_map(mx.add, before, new)
    return tree_map(lambda *xs: sum(xs), *sums.values())


def make_step(model, optimizer, objective: Objective, gather: Callable[..., NamedTuple], group: Group, config: Config):
    """Makes the compiled function step(state, lr, index, *arrays) -> (state, StepOutput).

    The arguments of the compiled function are the training state, the learning rate (() float32), the number of the
    step from 0 (() uint32, which selects the dropout masks), and the arrays that the source's `next` returned.

    Args:
        model: The network. Its own weights are not used: the weights come from the state.
        optimizer: Computes new weights and a new optimizer state from gradients.
        objective: The training objective.
        gather: Builds the batch from `arrays`, as `Source.gather` does.
        group: The processes that train together.
        config: The settings of the run.
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
        # A skipped update keeps the old state. mx.where selects it on the device; a traced function cannot branch.
        return tree_map(lambda a, b: mx.where(finite, a, b), new, state), StepOutput(loss, norm, finite, metrics)

    return step
