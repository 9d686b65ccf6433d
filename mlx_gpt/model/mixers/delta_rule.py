"""The gated delta rule (arXiv:2412.06464): a memory that is updated at every position, in three forms.

A head has a memory S (D, E). For each token with key k, value v, write strength b and log decay g <= 0, and query q:

    S <- exp(g) S
    S <- S + k (b (v - S^T k))^T
    y = S^T q

Shapes: B rows, H heads, T tokens, D width of a key or query, E width of a value, N chunks of L tokens. All arrays are
float32.
"""

from mlx_gpt.device.mlx import mx

CHUNK = 64  # largest number of tokens of a chunk, BASE times a power of 2
BASE = 8  # size of the blocks that are inverted by a product of powers


def delta_rule(
    q: mx.array, k: mx.array, v: mx.array, strength: mx.array, log_decay: mx.array, memory: mx.array
) -> tuple[mx.array, mx.array]:
    """Reads tokens.

    Args:
        q, k: (B, H, T, D).
        v: (B, H, T, E).
        strength: b, (B, H, T).
        log_decay: g, (B, H, T). Where it and `strength` are 0, a token leaves the memory unchanged.
        memory: S before the first token, (B, H, D, E).

    Returns:
        y, (B, H, T, E), and S after the last token.
    """
    read = _step if q.shape[2] == 1 else _by_chunks
    return read(q, k, v, strength, log_decay, memory)


def _step(q, k, v, strength, log_decay, memory):
    """Reads one token of each row."""
    memory = memory * mx.exp(log_decay)[..., None]  # (B, H, D, E)
    delta = strength[..., None] * (v - k @ memory)  # (B, H, 1, E)
    memory = memory + k.swapaxes(-1, -2) * delta
    return q @ memory, memory


def _by_chunks(q, k, v, strength, log_decay, memory):
    """Reads tokens in chunks. The work is matrix products within chunks, and a loop over the chunks.

    Let G_i be the sum of g up to token i of a chunk, and S the memory before it. The memory after token i is

        S_i = exp(G_i) S + sum over j <= i of exp(G_i - G_j) k_j u_j^T

    where u_i = b_i (v_i - exp(g_i) S_{i-1}^T k_i) is what token i writes. Inserting S_{i-1} gives a triangular system
    for the rows u_i,

        (I + A) U = b (V - exp(G) K S),    A_ij = b_i exp(G_i - G_j) k_i k_j for j < i, and 0 otherwise,

    whose matrix does not depend on S. It is inverted for all chunks at once.
    """
    T, size = q.shape[2], BASE
    while size < min(T, CHUNK):
        size *= 2
    q, k, v = (_chunks(a, size) for a in (q, k, v))  # (B, H, N, L, D or E)
    strength, log_decay = (_chunks(a[..., None], size) for a in (strength, log_decay))  # (B, H, N, L, 1)
    total = mx.cumsum(log_decay, axis=-2)  # G
    order = mx.arange(size)
    later = order[:, None] >= order  # j <= i
    decay = mx.exp(mx.where(later, total - total.swapaxes(-1, -2), -1e9))  # (B, H, N, L, L)
    near = k @ k.swapaxes(-1, -2)
    inverse = inverse_unit_lower(mx.where(order[:, None] > order, strength * decay * near, 0))
    values = inverse @ (strength * v)
    keys = inverse @ (strength * mx.exp(total) * k)
    scores = (q @ k.swapaxes(-1, -2)) * decay
    q = q * mx.exp(total)
    last = total[..., -1:, :]
    k = (k * mx.exp(last - total)).swapaxes(-1, -2)
    outs = []
    for n in range(q.shape[2]):
        written = values[:, :, n] - keys[:, :, n] @ memory  # U
        outs.append(q[:, :, n] @ memory + scores[:, :, n] @ written)
        memory = mx.exp(last[:, :, n]) * memory + k[:, :, n] @ written
    return mx.concatenate(outs, axis=2)[:, :, :T], memory


def _chunks(x: mx.array, size: int) -> mx.array:
    """Cuts x (B, H, T, ...) into chunks, (B, H, N, L, ...). The last one is filled with zeros."""
    B, H, T, width = x.shape
    x = mx.pad(x, [(0, 0), (0, 0), (0, -T % size), (0, 0)])
    return x.reshape(B, H, -1, size, width)


@mx.custom_function
def inverse_unit_lower(a: mx.array) -> mx.array:
    """Returns the inverse of I + a, where a (..., L, L) is zero on and above the diagonal. L is BASE * 2^n.

    The diagonal blocks of size BASE are inverted as (I - a)(I + a^2)(I + a^4), because a^8 is 0. Then pairs of
    neighbouring inverses X and Z are joined, with the block Y of I + a below X, to the inverse [[X, 0], [-Z Y X, Z]].
    Inverting the whole matrix by powers would lose all digits if keys are alike.
    """
    L, size = a.shape[-1], BASE
    blocks = mx.stack([a[..., i : i + size, i : i + size] for i in range(0, L, size)], axis=-3)
    square, eye = blocks @ blocks, mx.eye(size)
    found = (eye - blocks) @ (eye + square) @ (eye + square @ square)  # (..., L / size, size, size)
    while size < L:
        y = mx.stack([a[..., i + size : i + 2 * size, i : i + size] for i in range(0, L, 2 * size)], axis=-3)
        x, z = found[..., ::2, :, :], found[..., 1::2, :, :]
        upper, lower = mx.concatenate([x, mx.zeros_like(x)], axis=-1), mx.concatenate([-(z @ y @ x), z], axis=-1)
        found, size = mx.concatenate([upper, lower], axis=-2), 2 * size
    return found[..., 0, :, :]


@inverse_unit_lower.vjp
def _(_a, cotangent, inverse):
    transposed = inverse.swapaxes(-1, -2)
    order = mx.arange(inverse.shape[-1])
    return mx.where(order[:, None] > order, -(transposed @ cotangent @ transposed), 0)
