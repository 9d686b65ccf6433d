"""State dictionaries and exported folders whose names and numbers cannot be: each is one line that names the file."""

import json
import math

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import MODEL, checkpoint

from mlx_gpt.errors import BadFile
from mlx_gpt.formats import FORMATS
from mlx_gpt.run.loading import read_checkpoint

NAME = "layers.0.attn.wq.weight"
LAYER = np.zeros((8, 8), np.float32)


def refused(path) -> str:
    with pytest.raises(BadFile) as error:
        read_checkpoint(path, network={"n_head": 2})
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("layers.\u00b2.attn.wq.weight", LAYER),
        ("layers.-1.attn.wq.weight", LAYER),
        ("layers." + "9" * 5000 + ".attn.wq.weight", LAYER),
        ("layers.", LAYER),
        ("layers", LAYER),
        ("a\nb", LAYER),
        ("\u202e", LAYER),
        ("", LAYER),
        ("wte.weight", np.zeros((0, 8), np.float32)),
        ("wte.weight", np.zeros((5, 0), np.float32)),
        ("wpe.weight", np.zeros((0, 8), np.float32)),
    ],
)
def test_a_state_dict_with_odd_names_or_sizes_is_refused(tmp_path, name, tensor):
    path = tmp_path / "state.safetensors"
    safetensors.numpy.save_file(checkpoint().weights, path)
    assert read_checkpoint(path, network={"n_head": 2}).header.config.model == MODEL
    safetensors.numpy.save_file(checkpoint().weights | {name: tensor}, path)
    refused(path)


def test_a_state_dict_without_layers_is_refused(tmp_path):
    weights = {name: w for name, w in checkpoint().weights.items() if not name.startswith("layers.")}
    safetensors.numpy.save_file(weights, tmp_path / "state.safetensors")
    assert "n_layer=0" in refused(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    "own",
    [
        *({"iteration": value, "step": 6, "best_loss": "2.5"} for value in (math.inf, math.nan, -1, 1.5, "7", None)),
        {"iteration": 7, "step": 6, "best_loss": "low"},
        {"iteration": 7, "step": True, "best_loss": "2.5"},
        {"iteration": 7},
        [7],
        None,
    ],
)
def test_the_progress_in_an_exported_folder_is_checked(tmp_path, own):
    FORMATS["huggingface"].write(checkpoint(), tmp_path / "out")
    assert read_checkpoint(tmp_path / "out").header.step == 7
    facts = json.loads((tmp_path / "out/config.json").read_text()) | {"mlxgpt": own}
    (tmp_path / "out/config.json").write_text(json.dumps(facts))
    with pytest.raises(BadFile, match="config.json: .*mlxgpt"):
        read_checkpoint(tmp_path / "out")
