"""Several residual streams that every half of a block mixes (mHC-lite; hyper-connections, arXiv:2409.19606).

A unit reads a weighted sum u of the streams, and its half of a block computes F(u). The streams then become

    s_i <- sum over j of H_ij s_j + post_i F(u)

where the matrix H is doubly stochastic: a weighted mean of permutations (Birkhoff and von Neumann). Products of such
matrices are doubly stochastic too, so no depth makes the mixed streams larger.

Shapes: N streams, B rows (sequences), T tokens in a row, C n_embd, P = N! permutations.
"""

import itertools

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.specs import Specs, Values, Weight

IDENTITY = {2: 2.0, 4: 4.0}  # initial logit of the identity, by N; the logits of the other permutations start at 0
READ, WRITE = 2.0, 0.5  # the initial logits of reading and writing are spread evenly from -READ to READ, and so on


class MixedStreams(nn.Module):
    """One half of a block with N streams, which form one array s (N, B, T, C). The embeddings are copied into all.

    H is the mean of the permutation matrices, in lexicographic order, weighted by softmax(mix). With two streams, `mix`
    is the logit of the identity, and the logit of the swap is 0. The weights of reading are sigmoid(pre), and those of
    writing are 2 sigmoid(post).

    Streams that start equal and are read and written alike stay equal for ever. The initial logits of reading and
    writing therefore differ between streams, and change from unit to unit.
    """

    def __init__(self, config: ModelConfig, unit: int):
        super().__init__()
        for name, weight in self.specs(config, unit).items():
            setattr(self, name, mx.zeros(weight.shape))
        self._permutations = permutations(config.n_stream)

    @staticmethod
    def specs(config: ModelConfig, unit: int) -> Specs:
        N = config.n_stream
        spread = [2 * i / (N - 1) - 1 for i in range(N)]
        turned = [spread[(i + unit) % N] for i in range(N)]
        mix = [IDENTITY[N]] + [0.0] * (0 if N == 2 else len(permutations(N)) - 1)
        values = {"mix": mix, "pre": [READ * x for x in turned], "post": [WRITE * x for x in spread]}
        return {
            name: Weight((len(numbers),), Values(tuple(numbers)), "scalar", float32=True)
            for name, numbers in values.items()
        }

    def matrix(self) -> mx.array:
        """Returns H, (N, N) float32."""
        logits = self.mix if len(self.mix) > 1 else mx.concatenate([self.mix, mx.zeros(1)])
        N = len(self.pre)
        return (mx.softmax(logits) @ self._permutations.reshape(-1, N * N)).reshape(N, N)

    def expand(self, x: mx.array) -> mx.array:
        return mx.broadcast_to(x, (len(self.pre), *x.shape))

    def read(self, s: mx.array) -> mx.array:
        return (mx.sigmoid(self.pre).astype(s.dtype) @ s.reshape(len(s), -1)).reshape(s.shape[1:])

    def write(self, s: mx.array, y: mx.array) -> mx.array:
        mixed = (self.matrix().astype(s.dtype) @ s.reshape(len(s), -1)).reshape(s.shape)
        return mixed + (2 * mx.sigmoid(self.post)).astype(s.dtype)[:, None, None, None] * y

    def collapse(self, s: mx.array) -> mx.array:
        return s.mean(axis=0)


def permutations(count: int) -> mx.array:
    """Returns the matrices of all permutations of 0 to N - 1 in lexicographic order, (P, N, N).

    The matrix of a permutation p has a 1 in row i and column p(i).
    """
    return mx.eye(count)[mx.array(list(itertools.permutations(range(count))))]
