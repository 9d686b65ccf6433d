"""The contender "mlxgpt": measures its compiled training step, the parts of that step, and generation.

Shapes: B batch, H heads, T time, D head width.
"""

import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from mlx.utils import tree_flatten

from mlx_gpt import rng
from mlx_gpt.bench.case import LEARNING_RATE, Case
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Batch, Windows
from mlx_gpt.device.lanes import one_at_a_time
from mlx_gpt.device.mlx import DTYPES, mx, peak_memory
from mlx_gpt.device.report import matmul_rate
from mlx_gpt.generation.decode import Decoder
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.model.mixers.kernels import make_attend
from mlx_gpt.optim.clip import CLIPS, global_norm
from mlx_gpt.optim.optimizers import Optimizer
from mlx_gpt.train.objectives import make_objective
from mlx_gpt.train.parallel import Alone
from mlx_gpt.train.step import initial_state, make_gradients, make_loss, make_step, over_lanes


class Contender:
    """Runs the same compiled step as the trainer, without evaluations, reports and checkpoints."""

    def __init__(self, case: Case):
        self.version = f"MLX {version('mlx')}"
        self.case, self.config = case, case.config
        self.model = GPT(self.config.model, case.vocab_size, speed=case.config.speed)
        self.weights = {name: mx.array(w) for name, w in case.weights.items()}
        self.model.set_weights(self.weights)
        self.windows = Windows(Tokens.of(case.ids, [len(case.ids)]), self.config.model.block_size)
        self.optimizer = Optimizer(self.config.optimizer, roles_of(self.config.model, case.vocab_size))
        self.objective = make_objective(self.config)
        self.step = self._make_step(self.config)
        self.state, self.index = self._first_state(), 0

    def losses(self, rows: int) -> list[float]:
        """Returns the losses of the first `rows` sequences of the case's batch, before and after one update on them.

        The windows of index 0 are those from which make_case() built the batch. Fewer rows are a prefix of them.
        """
        config = self.config
        step, state, found = self.step, self._first_state(), []
        if rows != config.train.sequences_per_step:
            step = self._make_step(config.replace({"train.batch_size": rows, "train.grad_accum_steps": 1}))
        for _ in range(2):
            index, spans = mx.array(0, dtype=mx.uint32), self._spans(0, rows)
            state, output = step(state, mx.array(LEARNING_RATE), index, *spans)
            found.append(output.loss.item())
        return found

    def steps(self, count: int) -> float:
        """Runs `count` updates and returns their time in seconds. No loss is read on the host between them."""
        start = time.perf_counter()
        for _ in range(count):
            self.index += 1
            index, spans = mx.array(self.index, dtype=mx.uint32), self._spans(self.index)
            self.state, output = self.step(self.state, mx.array(LEARNING_RATE), index, *spans)
            mx.async_eval(self.state, output)
        mx.eval(self.state)
        return time.perf_counter() - start

    def device_peak(self) -> int:
        return peak_memory()

    def parts(self, seconds: float) -> dict[str, float]:
        """Times the parts of a training step, each by itself.

        Args:
            seconds: Approximate total time of the measurements.

        Returns:
            The seconds of each part, each the minimum of repeated runs. `forward` computes the loss alone. `backward`
            is the time of the combined forward and backward pass minus `forward`. `attention` is the forward and
            backward time of the attention function in all layers. It is contained in `forward` and `backward`.
        """
        config, weights = self.config, self.state["weights"]
        rows, T = config.train.sequences_per_step, config.model.block_size
        H, D = config.model.n_head, config.model.head_dim
        batch = mx.compile(lambda *spans: tuple(self.windows.gather(*spans)))
        key, total = rng.key(0, rng.DROPOUT), mx.array(float(rows * T))
        attend = make_attend(config.speed.attention, config.speed.query_blocks)
        part_loss = make_loss(self.model, self.objective, config)
        gradients = make_gradients(self.model, self.objective, Alone(), config)

        def loss(weights, *data):
            return over_lanes(lambda part, first: part_loss(weights, Batch(*part), total, key, first)[0], data, config)

        def attention(q, k, v):
            def part(qkv, first):  # the sum of the gradients; it makes MLX compute all of them
                scale, ones = D**-0.5, mx.ones_like(qkv[0])
                grads = mx.vjp(lambda *qkv: attend(*qkv, scale), list(qkv), [ones])[1]
                return sum(g.sum() for g in grads)

            return over_lanes(part, (q, k, v), config)

        def optimize(weights, grads, state):
            grads = CLIPS[config.optimizer.clip_mode](grads, config.optimizer.max_grad_norm, global_norm(grads))
            return self.optimizer.update(weights, grads, state, mx.array(LEARNING_RATE))

        spans = self._spans(1)
        data = batch(*spans)
        heads = [mx.random.normal((rows, H, T, D)).astype(DTYPES[config.train.dtype]) for _ in range(3)]
        both = mx.compile(lambda w, *data: gradients(w, Batch(*data), key))
        _, _, grads = both(weights, *data)
        mx.eval(data, heads, grads)
        share = seconds / 5
        forward = _best(mx.compile(loss), (weights, *data), share)
        return {
            "data": _best(batch, spans, share),
            "forward": forward,
            "backward": max(_best(both, (weights, *data), share) - forward, 0.0),
            "optimizer": _best(mx.compile(optimize), (weights, grads, self.state["optimizer"]), share),
            "attention": config.model.n_layer * _best(mx.compile(attention), heads, share),
        }

    def matmul_rate(self) -> float:
        """Returns the rate of a square matrix product in GFLOP/s, in the compute type of the case.

        On a CPU the product uses all cores.
        """
        with one_at_a_time():
            return matmul_rate(dtype=self.config.train.dtype)

    def prefill(self, rows: int) -> float:
        """Returns the seconds of reading `rows` prompts that fill the context, after a call that compiles."""
        decoder, tokens = self._decoder(), np.ones((rows, self.config.model.block_size), np.int32)
        for _ in range(2):  # the first one compiles
            start = time.perf_counter()
            found, states = decoder.read(tokens, mx.array(0))
            mx.eval(found, states.parts)
        return time.perf_counter() - start

    def decode(self, rows: int) -> tuple[float, list[int]]:
        """Generates `case.written` tokens in each of `rows` sequences, after a prompt, with greedy decoding.

        As in streaming, the host reads each token while the device computes the next one.

        Returns:
            The seconds of decoding, without the prefill of the prompt, and the generated ids of the first sequence.
        """
        decoder, tokens = self._decoder(), np.ones((rows, self.case.prompt), np.int32)
        for _ in range(2):  # the first one compiles
            ids, states = decoder.read(tokens, mx.array(0))
            mx.eval(ids, states.parts)
            start, text = time.perf_counter(), []
            for place in range(1, self.case.written + 1):
                following, states = decoder.step(ids, mx.array(place), states, self.case.prompt + place)
                mx.async_eval(following, states.parts)
                text.append(ids.tolist()[0])
                ids = following
            mx.eval(ids)
        return time.perf_counter() - start, text

    def _decoder(self) -> Decoder:
        """Returns a greedy decoder with the initial weights."""
        self.model.set_weights(self.weights)
        return Decoder(self.model, lambda logits, place: mx.argmax(logits, axis=-1))

    def _spans(self, index: int, rows: int | None = None) -> list[mx.array]:
        """Returns the arrays from which Windows.gather builds the batch of update `index`."""
        train = self.config.train
        windows = self.windows.draw(train.seed, rng.WINDOWS, index, rows or train.sequences_per_step)
        return [mx.array(a) for a in self.windows.read(windows)]

    def _make_step(self, config):
        return make_step(self.model, self.optimizer, self.objective, self.windows.gather, Alone(), config)

    def _first_state(self):
        return initial_state(dict(self.weights), self.optimizer)


def _best(run: Callable, arguments: tuple, seconds: float) -> float:
    """Repeats run(*arguments) for some seconds, at least twice. Returns the shortest time in seconds.

    A call that is not timed compiles first.
    """
    mx.eval([a for _, a in tree_flatten(run(*arguments))])
    times, until = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < until:
        start = time.perf_counter()
        mx.eval([a for _, a in tree_flatten(run(*arguments))])
        times.append(time.perf_counter() - start)
    return min(times)
