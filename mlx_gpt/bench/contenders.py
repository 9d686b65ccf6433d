"""The table of contenders, and the interface that they implement.

Each module of the table defines a class Contender. `Contender(case, **arguments)` has the attribute `version`, a line
of text for the user, and these methods:

* losses(rows) returns the losses of the first `rows` sequences of the case's batch, before and after one update on
  them. It leaves no trace: later calls start from the initial weights.
* steps(count) runs `count` updates and returns their time in seconds. "plain MLX" takes the number of sequences of an
  update as a second argument.
* device_peak() returns the peak memory of the framework's arrays in bytes, or 0 if the framework does not report it.

"mlxgpt" and "PyTorch" also measure generation, with prefill(rows) and decode(rows). "mlxgpt" alone has parts(seconds)
and matmul_rate(). "PyTorch" alone is asked for recompute(count).
"""

# The name of a contender -> its module, and the keyword arguments of its class. Reports list contenders in this order.
CONTENDERS = {
    "mlxgpt": ("mlx_gpt.bench.ours", {}),
    "torch.compile": ("mlx_gpt.bench.pytorch", {"compiled": True}),
    "PyTorch": ("mlx_gpt.bench.pytorch", {"compiled": False}),
    "plain MLX": ("mlx_gpt.bench.plain", {}),
}
