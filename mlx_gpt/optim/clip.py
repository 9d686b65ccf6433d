"""Gradient clipping: by the global norm, by each tensor's norm, or by element."""

from mlx_gpt.device.mlx import mx

Gradients = dict[str, mx.array]


def global_norm(grads: Gradients) -> mx.array:
    """L2 norm over all tensors, () float32."""
    return mx.sqrt(sum(mx.square(g).sum() for g in grads.values()))


def clip_global(grads: Gradients, bound: float, norm: mx.array) -> Gradients:
    """Scales all gradients by min(bound / norm, 1)."""
    scale = mx.minimum(bound / (norm + 1e-6), 1.0)
    return {name: g * scale for name, g in grads.items()}


def clip_tensor(grads: Gradients, bound: float, norm: mx.array) -> Gradients:
    """Scales each gradient by min(bound / its own norm, 1)."""
    return {name: clip_global({name: g}, bound, global_norm({name: g}))[name] for name, g in grads.items()}


def clip_element(grads: Gradients, bound: float, norm: mx.array) -> Gradients:
    """Limits each element to [-bound, bound]."""
    return {name: mx.clip(g, -bound, bound) for name, g in grads.items()}


# Each row takes the gradients, the bound and their global norm, which the step has already computed.
CLIPS = {
    "global": clip_global,
    "tensor": clip_tensor,
    "element": clip_element,
    "none": lambda grads, bound, norm: grads,
}
