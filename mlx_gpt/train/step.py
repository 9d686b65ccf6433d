"""The training step: one compiled function of explicit state.

Gathers windows on the device, runs forward and backward, clips, and updates, or leaves everything as it was where the
loss or the gradient is not finite. Traced once: whatever changes from step to step enters as an array.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlx.utils import tree_flatten, tree_map

from mlx_gpt import rng
from mlx_gpt.config.schema import Config
from mlx_gpt.data.windows import Batch
from mlx_gpt.device.lanes import divide, lanes
from mlx_gpt.device.mlx import cast, mx
from mlx_gpt.optim.clip import global_norm
from mlx_gpt.train.objective import cross_entropy

# float16 gradients of a mean over thousands of tokens would underflow; the other types have float32's range.
LOSS_SCALE = {"float32": 1.0, "bfloat16": 1.0, "float16": 1024.0}

State = dict[str, Any]


class StepOutput(NamedTuple):
    """Device scalars: mean loss (nats per token), gradient norm before the clip, and whether the update was made."""

    loss: mx.array
    grad_norm: mx.array
    finite: mx.array


def initial_state(weights: dict[str, mx.array], optimizer) -> State:
    return {"weights": weights, "optimizer": optimizer.init(weights)}


def make_loss(model, config: Config):
    """loss(weights, part, total, dropout_key, first_row): what a part adds to the mean over `total` tokens, scaled."""
    dtype = config.train.dtype

    def loss(weights, batch: Batch, total: mx.array, dropout_key: mx.array, first_row: int):
        logits = model.apply(cast(weights, dtype), batch.inputs, dropout_key=dropout_key, first_row=first_row)
        return (cross_entropy(logits, batch.targets) * batch.mask).sum() / total * LOSS_SCALE[dtype]

    return loss


def make_gradients(model, config: Config):
    """gradients(weights, batch, dropout_key) -> (loss, gradients), of the whole batch."""
    loss, scale = make_loss(model, config), LOSS_SCALE[config.train.dtype]

    def gradients(weights, batch: Batch, dropout_key: mx.array):
        total = batch.mask.sum()

        def of_part(part, first_row):
            return mx.value_and_grad(loss)(weights, Batch(*part), total, dropout_key, first_row)

        return tree_map(lambda x: x / scale, over_lanes(of_part, batch, config))

    return gradients


def over_lanes(run: Callable, arrays: Sequence[mx.array], config: Config):
    """The sum of run(part, first_row) over the parts of a batch: side by side on the lanes, in turn on each of them."""
    train, sums = config.train, {}
    parts = divide(len(arrays[0]), train.batch_size, lanes(config.speed.lanes), config.model.block_size)
    for first, end, lane in parts:
        with mx.stream(lane):
            part, before = [a[first:end] for a in arrays], sums.get(lane)
            if before is not None:  # so that the memory of one part is free before the next begins
                part = mx.depends(part, [a for _, a in tree_flatten(before)])
            new = run(part, first)
            sums[lane] = new if before is None else tree_map(mx.add, before, new)
    return tree_map(lambda *xs: sum(xs), *sums.values())


def make_step(model, optimizer, gather: Callable[..., Batch], clip, config: Config):
    """Compiles step(state, lr, index, *spans) -> (state, StepOutput); `index` (uint32) decides the dropout.

    `gather(*spans)` gives the batch, `clip(grads, bound, norm)` the bounded gradients.
    """
    train, bound = config.train, config.optimizer.max_grad_norm
    gradients = make_gradients(model, config)

    @mx.compile
    def step(state: State, lr: mx.array, index: mx.array, *spans: mx.array) -> tuple[State, StepOutput]:
        batch = gather(*spans)
        loss, grads = gradients(state["weights"], batch, rng.key(train.seed, rng.DROPOUT, index))
        norm = global_norm(grads)
        finite = mx.isfinite(loss) & mx.isfinite(norm)
        grads = clip(grads, bound, norm)
        weights, opt_state = optimizer.update(state["weights"], grads, state["optimizer"], lr)
        new = {"weights": weights, "optimizer": opt_state}
        return tree_map(lambda a, b: mx.where(finite, a, b), new, state), StepOutput(loss, norm, finite)

    return step
