"""What was asked for: each setting once, one corpus or several."""

from pathlib import Path

import pytest

from mlx_gpt.errors import UserError
from mlx_gpt.run.request import Request, network_of, settings_of, specs_of


def test_a_setting_given_twice_is_refused():
    with pytest.raises(UserError, match="train.iters is given twice, as 5 and 6"):
        settings_of([("train.iters", 5), ("train.seed", 1), ("train.iters", 6)])


def test_a_corpus_is_one_name_or_several():
    assert specs_of("pydocs:2") == ("pydocs:2",)
    assert specs_of(Path("notes")) == ("notes",)
    assert specs_of(["pydocs", Path("notes")]) == ("pydocs", "notes")


def test_dropout_is_no_part_of_the_network():
    assert network_of({"model.n_head": 4, "model.dropout": 0.5, "train.iters": 3}) == {"n_head": 4}


def test_a_run_is_resumed_or_fine_tuned():
    with pytest.raises(UserError, match="give one of them"):
        Request(resume="a", fine_tune=Path("b"))


@pytest.mark.parametrize("name", ["preset", "recipe", "resume"])
def test_an_empty_name_is_refused(name):
    with pytest.raises(UserError, match=f"--{name} is empty"):
        Request(**{name: ""})


def test_settings_have_current_names():
    assert settings_of([("model.mlp", "relu2"), ("optimizer.lr_cuts", 2)]) == {
        "model.ffn": "relu2",
        "optimizer.max_lr_cuts": 2,
    }
    with pytest.raises(UserError, match="did you mean model.n_layer"):
        settings_of([("model.n_layerz", 2)])
    with pytest.raises(UserError, match="model.ffn is given twice"):
        settings_of([("model.mlp", "relu2"), ("model.ffn", "swiglu")])
