"""Gradient clipping: by the global norm, by each tensor's norm, or by element."""

from mlx_gpt.device.mlx import mx

Gradients = dict[str, mx.array]


def global_norm(grads: Gradients) -> mx.array:
    """Returns the L2 norm of all gradients together, () float32."""
    return mx.sqrt(sum(mx.square(g).sum() for g in grads.values()))


def clip_global(grads: Gradients, bound: float, norm: mx.array) -> Gradients:
    """Scales all gradients by min(bound / norm, 1), where `norm` is their global norm."""
    scale = mx.minimum(bound / (norm + 1e-6), 1.0)
    return {name: g * scale for name, g in grads.items()}


def clip_tensor(grads: Gradients, bound: float, norm: mx.array) -> Gradients:
    """Scales each gradient by min(bound / n, 1), where n is the L2 norm of that gradient alone. Ignores `norm`."""
    return {name: clip_global({name: g}, bound, global_norm({name: g}))[name] for name, g in grads.items()}


def clip_element(grads: Gradients, bound: float, norm: mx.array) -> Gradients:
    """Limits each element of the gradients to [-bound, bound]. Ignores `norm`."""
    return {name: mx.clip(g, -bound, bound) for name, g in grads.items()}


# The clipping function for each `optimizer.clip_mode`. All take the gradients, the bound `optimizer.max_grad_norm`, and
# the global norm of the gradients, which the training step has already computed for its report.
CLIPS = {
    "global": clip_global,
    "tensor": clip_tensor,
    "element": clip_element,
    "none": lambda grads, bound, norm: grads,
}
