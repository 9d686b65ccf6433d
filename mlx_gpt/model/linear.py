"""Linear layers of the blocks.

A linear layer may have one parametrization for training and another one for inference, which `pack()` returns.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.device.mlx import mx, nn, on_gpu
from mlx_gpt.errors import UserError
from mlx_gpt.model.norm import rms_norm
from mlx_gpt.model.specs import Constant, Init, Specs, Weight
from mlx_gpt.model.ternary import (
    TRITS_PER_BYTE,
    dequantize,
    int8_rows,
    packed_shapes,
    quantize,
    straight_through,
    two_bit,
    two_bit_group,
    unpack,
)


class Linear(Protocol):
    """A linear map from (..., inputs) to (..., outputs), without bias.

    Args:
        config: The settings of [model].
        inputs: Size of the last axis of the input.
        outputs: Size of the last axis of the output.
    """

    def __init__(self, config: ModelConfig, inputs: int, outputs: int): ...

    @staticmethod
    def specs(config: ModelConfig, inputs: int, outputs: int, init: Init) -> Specs:
        """Returns the specs of the weights. `init` is the initializer of a matrix (outputs, inputs)."""
        ...

    @staticmethod
    def matrix(weights: Mapping[str, mx.array], config: ModelConfig) -> mx.array:
        """Returns the matrix of the map, (..., outputs, inputs).

        Args:
            weights: The weights by their names in specs(), each possibly with further axes in front.
            config: The settings of [model].
        """
        ...

    @staticmethod
    def prepared(x: mx.array, config: ModelConfig) -> mx.array:
        """Returns what is multiplied with the matrix, for an input x (..., inputs)."""
        ...

    def __call__(self, x: mx.array) -> mx.array: ...

    def pack(self) -> nn.Module:
        """Returns the layer for inference: a module that computes the same map. It may be the layer itself."""
        ...


class Dense(nn.Linear):
    """y = x W^T, with one weight W of shape (outputs, inputs)."""

    def __init__(self, config: ModelConfig, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    @staticmethod
    def specs(config: ModelConfig, inputs: int, outputs: int, init: Init) -> Specs:
        return {"weight": Weight((outputs, inputs), init, "matrix")}

    @staticmethod
    def matrix(weights: Mapping[str, mx.array], config: ModelConfig) -> mx.array:
        return weights["weight"]

    @staticmethod
    def prepared(x: mx.array, config: ModelConfig) -> mx.array:
        return x

    def pack(self) -> nn.Module:
        return self


class BitLinear(nn.Module):
    """y = Q(x) T^T with a ternary matrix T, which is computed from a float32 weight in every forward pass.

    T is dequantize(quantize(weight)) of model/ternary.py. Q rounds every token to 8 bits if
    `model.ternary_activations` is "int8", and is the identity otherwise. With `model.ternary_norm`, x is first
    normalized (RMSNorm without weights). Gradients pass through both roundings unchanged.
    """

    def __init__(self, config: ModelConfig, inputs: int, outputs: int):
        super().__init__()
        self.config = config
        self.weight = mx.zeros((outputs, inputs))

    @staticmethod
    def specs(config: ModelConfig, inputs: int, outputs: int, init: Init) -> Specs:
        group = config.ternary_group
        if group.isdigit() and inputs % int(group):
            raise UserError(
                f"model.ternary_group={group} does not divide {inputs}, the width of a layer's input; choose tensor or "
                "row, or another model.n_embd or model.ffn_dim"
            )
        return {"weight": Weight((outputs, inputs), init, "matrix", float32=True)}

    @staticmethod
    def matrix(weights: Mapping[str, mx.array], config: ModelConfig) -> mx.array:
        return straight_through(lambda w: dequantize(*quantize(w, config.ternary_group)))(weights["weight"])

    @staticmethod
    def prepared(x: mx.array, config: ModelConfig) -> mx.array:
        x = rms_norm(x, config.norm_eps) if config.ternary_norm else x
        return _int8(x) if config.ternary_activations == "int8" else x

    def __call__(self, x: mx.array) -> mx.array:
        return self.prepared(x, self.config) @ self.matrix(self, self.config).astype(x.dtype).T

    def pack(self) -> nn.Module:
        return TernaryProduct(self.config, *quantize(self.weight, self.config.ternary_group))


class PackedTernary(nn.Module):
    """BitLinear with trits and scales instead of a float32 weight: 2 bits a trit. It cannot be trained."""

    def __init__(self, config: ModelConfig, inputs: int, outputs: int):
        super().__init__()
        self.config = config
        for name, weight in self.specs(config, inputs, outputs, Constant(0.0)).items():
            setattr(self, name, mx.zeros(weight.shape, getattr(mx, weight.dtype)))

    @staticmethod
    def specs(config: ModelConfig, inputs: int, outputs: int, init: Init) -> Specs:
        BitLinear.specs(config, inputs, outputs, init)
        if inputs % TRITS_PER_BYTE:
            raise UserError(
                f"model.linear=ternary-packed needs inputs that are a multiple of {TRITS_PER_BYTE}, not {inputs}; "
                "choose another model.n_embd or model.ffn_dim"
            )
        codes, scales = packed_shapes((outputs, inputs), config.ternary_group)
        return {
            "codes": Weight(codes, Constant(0.0), "packed", dtype="uint8"),
            "scales": Weight(scales, Constant(0.0), "packed", float32=True),
        }

    @staticmethod
    def matrix(weights: Mapping[str, mx.array], config: ModelConfig) -> mx.array:
        return dequantize(unpack(weights["codes"]), weights["scales"])

    @staticmethod
    def prepared(x: mx.array, config: ModelConfig) -> mx.array:
        return BitLinear.prepared(x, config)

    def __call__(self, x: mx.array) -> mx.array:
        return self.prepared(x, self.config) @ self.matrix(self, self.config).astype(x.dtype).T

    def pack(self) -> nn.Module:
        return TernaryProduct(self.config, unpack(self.codes), self.scales)


_int8 = straight_through(int8_rows)


class TernaryProduct(nn.Module):
    """BitLinear for inference.

    On a GPU the trits are stored in 2 bits, in the form of MLX's quantized products, which hold them exactly. On a CPU
    these products are slower than those of float32, so the matrix is stored in float32.

    Args:
        config: The settings of [model].
        trits: (R, C).
        scales: As quantize() returns them.
    """

    def __init__(self, config: ModelConfig, trits: mx.array, scales: mx.array):
        super().__init__()
        self.config = config
        size = two_bit_group(trits.shape[1], scales.shape[1])
        if on_gpu() and size:
            self.codes, self.scales, self.biases = two_bit(trits, scales, size)
            self.group_size = size
        else:
            self.weight = dequantize(trits, scales)

    def __call__(self, x: mx.array) -> mx.array:
        x = BitLinear.prepared(x, self.config)
        if "weight" in self:
            return x @ self.weight.T
        return mx.quantized_matmul(x, self.codes, self.scales, self.biases, group_size=self.group_size, bits=2)


class LinearStack(nn.Module):
    """The matrices of several linear layers of the same sizes, such as those of experts.

    Args:
        config: The settings of [model].
        count: The number of layers.
        inputs, outputs: The sizes of each layer.
    """

    def __init__(self, config: ModelConfig, count: int, inputs: int, outputs: int):
        super().__init__()
        self.config, self.kind = config, linear_class(config)
        for name, weight in self.specs(config, count, inputs, outputs, Constant(0.0)).items():
            setattr(self, name, mx.zeros(weight.shape, getattr(mx, weight.dtype)))

    @staticmethod
    def specs(config: ModelConfig, count: int, inputs: int, outputs: int, init: Init) -> Specs:
        """Returns the specs of a layer with one more axis in front, for the layers."""
        return {
            name: dataclasses.replace(w, shape=(count, *w.shape), role="matrices" if w.role == "matrix" else w.role)
            for name, w in linear_class(config).specs(config, inputs, outputs, init).items()
        }

    def matrices(self) -> mx.array:
        """Returns the matrices, (count, outputs, inputs)."""
        return self.kind.matrix(self, self.config)

    def prepared(self, x: mx.array) -> mx.array:
        """Returns what is multiplied with the matrices, for an input x (..., inputs)."""
        return linear_class(self.config).prepared(x, self.config)

    def pack(self) -> "LinearStack":
        """Returns the same matrices as dense ones. Returns the object itself if they are."""
        if self.kind is Dense:
            return self
        packed = LinearStack.__new__(LinearStack)
        nn.Module.__init__(packed)
        packed.config, packed.kind, packed.weight = self.config, Dense, self.matrices()
        return packed


LINEARS: dict[str, type[Linear]] = {"dense": Dense, "ternary": BitLinear, "ternary-packed": PackedTernary}


def linear_class(config: ModelConfig) -> type[Linear]:
    """Returns the class that `model.linear` names. Raises UserError for an unknown name."""
    return lookup(LINEARS, config.linear, "linear layer", prefix="model.linear=")
