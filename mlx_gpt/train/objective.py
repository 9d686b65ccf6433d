"""Training objectives: logits and a batch to a loss.

Shapes: B batch, T time, V vocabulary.
"""

from mlx_gpt.device.mlx import mx


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """-log softmax(logits)[target], (B, T) float32, of logits (B, T, V) of any type."""
    return mx.fast.cross_entropy(logits.astype(mx.float32), targets)
