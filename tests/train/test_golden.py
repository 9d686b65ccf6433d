"""The public system's own numbers: logits, losses and AdamW moments, from our model and our compiled step."""

import numpy as np
import pytest
from constants import TINY
from devices import tolerance

from mlx_gpt.config.presets import resolve
from mlx_gpt.data.windows import Batch
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.optim.optimizers import Optimizer
from mlx_gpt.train.objective import CrossEntropy
from mlx_gpt.train.parallel import Alone
from mlx_gpt.train.step import initial_state, make_step


@pytest.fixture
def trained(golden):
    """The tiny model, trained six steps by the product's step on the golden batches."""
    data, facts = golden
    config = resolve(recipe="randygpt", overrides=TINY | {"model.dropout": 0.0, "train.batch_size": 4})
    config = config.replace({"optimizer.learning_rate": facts["lr"], "optimizer.weight_decay": facts["weight_decay"]})
    model = GPT(config.model, facts["vocab_size"])
    model.set_weights({k.removeprefix("init/"): mx.array(data[k]) for k in data.files if k.startswith("init/")})
    before = np.array(model(data["tokens"]))
    batches = mx.array(data["train_tokens"].astype(np.int32))  # (6, 4, 33)

    def gather(index):
        tokens = batches[index]
        return Batch(tokens[:, :-1], tokens[:, 1:], mx.ones((4, 32)))

    optimizer = Optimizer(config.optimizer, roles_of(config.model, facts["vocab_size"]))
    state, losses = initial_state(model.weights(), optimizer), []
    step = make_step(model, optimizer, CrossEntropy(config), gather, Alone(), config)
    for current in range(6):
        state, output = step(state, mx.array(facts["lr"]), mx.array(0, dtype=mx.uint32), mx.array(current))
        losses.append(output.loss.item())
    model.set_weights(state["weights"])
    return before, losses, state, np.array(model(data["tokens"]))


def test_logits_losses_and_moments_are_the_public_systems(golden, trained):
    data, facts = golden
    before, losses, state, after = trained
    np.testing.assert_allclose(before, data["logits_before"], atol=tolerance("float32 network"), rtol=0)
    np.testing.assert_allclose(losses, data["losses"], atol=tolerance("float32 loss"), rtol=0)
    name = "layers.0.attn.wq.weight"
    np.testing.assert_allclose(state["weights"][name], data["wq0"], atol=tolerance("float32 loss"), rtol=0)
    np.testing.assert_allclose(state["optimizer"]["m"][name], data["m_wq0"], atol=tolerance("float32 loss"), rtol=0)
    np.testing.assert_allclose(state["optimizer"]["v"][name], data["v_wq0"], atol=tolerance("float32 loss"), rtol=0)
    np.testing.assert_allclose(after, data["logits_after"], atol=tolerance("float32 network"), rtol=0)
    assert state["optimizer"]["num_updates"].item() == facts["step"]
