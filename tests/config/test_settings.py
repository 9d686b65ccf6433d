"""Configuration: presets, layers of values, --set, and what is refused."""

import dataclasses
import tomllib

import pytest
from constants import ROOT

from mlx_gpt.config.effects import NEEDS, without_effect
from mlx_gpt.config.presets import names_of, parse_set, preset_of, resolve
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.model.cost import num_active_params, num_params, packed_sizes, step_bytes
from mlx_gpt.model.gpt import shapes_of

# At the 67 ids of tiny Shakespeare. The published table, and the presets of other networks.
PARAMETERS = {
    "model-xs": 529_656,
    "model-s": 836_352,
    "model-s8": 1_622_784,
    "model-ds": 2_409_216,
    "model-m": 2_729_088,
    "model-l": 4_818_432,
    "model-l-modern": 4_752_896,
    "model-deep": 7_152_768,
    "model-xl": 14_305_536,
    "tiny": 1_204_992,
    "large": 4_769_280,
    "llama-s": 1_788_416,
    "llama-m": 4_739_072,
    "llama-l": 15_768_576,
    "llama-125m": 100_740_096,
    "ternary-m": 4_739_072,
    "ternary-125m": 100_740_096,
    "experts-m": 14_300_672,
    "mhc-m": 4_753_280,
    "nano-d20": 5_132_348,
    "nano-125m": 88_544_376,
    "nano-275m": 241_283_272,
    "nano-1b": 1_012_097_224,
    "hybrid-m": 4_839_124,
    "mla-m": 4_777_472,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_presets_have_the_published_parameter_counts(preset):
    model = resolve(preset).model
    assert num_params(model, 67) == PARAMETERS[preset]
    assert preset_of(model) == preset


def test_the_presets_of_nanochat_have_its_parameters():
    """The published count of nano-125m is without the units of the mixed streams, which have 5 numbers each here."""
    model = resolve("nano-125m").model
    assert num_params(dataclasses.replace(model, residual="add"), 50257) == 127_090_176
    assert num_params(model, 50257) == 127_090_176 + 24 * 5
    assert num_params(dataclasses.replace(resolve("nano-d20").model, residual="add"), 50257) == 17_980_928
    assert num_active_params(resolve("experts-m").model, 67) == 4_789_760


def test_no_preset_is_left_out():
    assert set(names_of("presets")) == set(PARAMETERS)


@pytest.mark.parametrize("size", ["m", "125m"])
def test_a_ternary_preset_differs_from_its_float_twin_in_the_linear_layers_only(size):
    ternary, dense = resolve(f"ternary-{size}"), resolve(f"llama-{size}")
    assert ternary == dense.replace({"model.linear": "ternary"})


def test_packed_weights_have_two_bits_and_what_is_not_packed_stays_float32():
    dense, ternary = resolve("llama-m").model, resolve("ternary-m").model
    sizes, rest = packed_sizes(ternary, 67), 67 * 256 + 13 * 256  # the embedding and the weights of the norms
    matrices = num_params(ternary, 67) - rest
    assert sizes["float_bytes"] == 4 * 4_739_072
    assert sizes["packed_bytes"] == 4 * rest + matrices // 4 + 4 * 6 * 7
    assert sizes["packed_gpu_bytes"] == 4 * rest + matrices // 4 + matrices // 128 * 8
    by_64 = dataclasses.replace(ternary, ternary_group="64")
    assert packed_sizes(by_64, 67)["packed_bytes"] == 4 * rest + matrices // 4 + matrices // 64 * 4
    assert packed_sizes(dense, 67) == packed_sizes(dataclasses.replace(ternary, ffn_dim=767), 67) == {}


@pytest.mark.parametrize(
    "preset, by_blocks, remat, gigabytes",
    [
        ("model-xs", True, False, 0.183),
        ("model-s", True, False, 0.254),
        ("model-m", True, False, 0.563),
        ("model-l", True, False, 0.787),
        ("model-l", False, False, 0.917),
        ("model-l", True, True, 0.410),
        ("model-deep", True, False, 1.398),
        ("model-deep", True, True, 0.449),
        ("model-xl", True, False, 1.591),
        ("model-xl", True, True, 0.872),
    ],
)
def test_the_memory_of_a_step_is_foreseen_within_a_quarter(preset, by_blocks, remat, gigabytes):
    """Against peaks that MLX reported on two CPU cores, 16 sequences of a batch of 64 in flight."""
    foreseen = step_bytes(resolve(preset).model, 67, 16, by_blocks, remat)
    assert foreseen / 1e9 == pytest.approx(gigabytes, rel=0.25)


@pytest.mark.parametrize("preset", names_of("presets"))
@pytest.mark.parametrize("recipe", ["randygpt", "randygpt-0.9.5"])
def test_of_a_preset_a_seeds_recipe_leaves_the_network_alone(preset, recipe):
    own, plain = resolve(preset, recipe), resolve(None, recipe)
    settings = tomllib.loads((ROOT / f"presets/recipes/{recipe}.toml").read_text())
    for table in ("train", "optimizer"):
        for key in settings[table]:
            assert own.get(f"{table}.{key}") == plain.get(f"{table}.{key}"), key
    assert own.model.dropout == 0.1


def test_the_randygpt_recipe_is_the_seeds():
    config = resolve("model-l", "randygpt")
    assert (config.train.batch_size, config.model.block_size, config.model.dropout) == (64, 256, 0.1)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.min_learning_rate) == (3e-5, 3e-6)
    assert (optimizer.warmup_steps, optimizer.decay_start) == (100, 0.6)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay) == (0.9, 0.999, 1e-8, 0.01)
    assert (optimizer.clip_mode, optimizer.max_grad_norm) == ("element", 1.0)
    assert (config.train.eval_every, config.train.eval_windows, config.train.patience) == (10, 50, 20)


def test_the_randygpt_recipes_train_byte_pairs_by_its_rule():
    assert [resolve(None, name).data.bpe_rule for name in ("randygpt", "randygpt-0.9.5")] == ["randygpt"] * 2
    assert resolve().data.bpe_rule == "lines"
    written = {table: dict(values) for table, values in resolve().to_dict().items()}
    del written["data"]["bpe_rule"]  # as in files of earlier versions
    assert Config.from_dict(written).data.bpe_rule == "lines"


def test_command_line_wins_over_recipe_over_preset_over_defaults(tmp_path):
    preset, recipe = tmp_path / "p.toml", tmp_path / "r.toml"
    preset.write_text("[model]\nn_layer = 2\n[train]\nseed = 1\niters = 1\n")
    recipe.write_text("[train]\nseed = 2\niters = 2\n")
    config = resolve(str(preset), str(recipe), {"train.seed": 3})
    assert (config.model.n_layer, config.train.iters, config.train.seed) == (2, 2, 3)
    assert config.model.n_embd == ModelConfig().n_embd


def test_a_config_survives_toml_and_json():
    config = resolve("model-m", "randygpt", {"data.corpus": ('a "b"\\c', "ü"), "optimizer.learning_rate": 1e-5})
    assert Config.from_dict(tomllib.loads(config.to_toml())) == config
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "text, expected",
    [
        ("model.n_head=4", ("model.n_head", 4)),
        ("optimizer.learning_rate = 1e-5", ("optimizer.learning_rate", 1e-5)),
        ("train.dtype=bfloat16", ("train.dtype", "bfloat16")),
        ("train.eval_at_start=true", ("train.eval_at_start", True)),
        ("optimizer.momentum=.9", ("optimizer.momentum", 0.9)),
        ("optimizer.max_grad_norm=2", ("optimizer.max_grad_norm", 2.0)),
        ("model.mixers=attention, mla", ("model.mixers", ("attention", "mla"))),
        ("data.corpus=a.txt,b.txt", ("data.corpus", ("a.txt", "b.txt"))),
        ('data.corpus=["a,b.txt"]', ("data.corpus", ["a,b.txt"])),
    ],
)
def test_set_is_typed_by_its_field(text, expected):
    assert parse_set(text) == expected


def test_a_whole_number_may_be_written_as_a_float():
    iters = resolve(overrides=dict([parse_set("train.iters=5e2")])).train.iters
    assert iters == 500 and type(iters) is int


def test_a_run_folder_with_the_name_of_a_preset_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = resolve("tiny")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/run.toml").write_text("[train]\niters = 3\n")
    assert resolve("tiny") == expected


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"model.n_head": 7}, ["model.n_head=7", "n_embd=256", "8"]),
        ({"model.n_heads": 4}, ["model.n_heads", "did you mean model.n_head?"]),
        ({"modle.n_head": 4}, ["modle", "did you mean model?"]),
        ({"train.iters": 0}, ["train.iters=0", "from 1"]),
        ({"train.iters": 2.5}, ["train.iters=2.5", "whole number"]),
        ({"train.iters": float("inf")}, ["train.iters=inf", "whole number"]),
        ({"train.iters": True}, ["train.iters=True"]),
        ({"optimizer.learning_rate": -1.0}, ["optimizer.learning_rate=-1.0", "from 0"]),
        ({"optimizer.learning_rate": float("nan")}, ["optimizer.learning_rate=nan"]),
        ({"optimizer.learning_rate": "fast"}, ["optimizer.learning_rate='fast'", "a number"]),
        ({"optimizer.min_learning_rate": 1.0}, ["min_learning_rate=1", "--min-lr"]),
        ({"train.dtype": "fp8"}, ["train.dtype='fp8'", "bfloat16"]),
        ({"optimizer.clip_mode": "norm"}, ["clip_mode='norm'", "element"]),
        ({"data.corpus": "oneletters"}, ["data.corpus"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(overrides, words):
    with pytest.raises(UserError) as error:
        resolve(overrides=overrides)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("text", ["", "n_head=4", "model.n_head", "model.=4", "model.n_head=four"])
def test_a_malformed_set_is_refused(text):
    with pytest.raises(UserError):
        parse_set(text)


def test_an_unknown_name_is_answered_with_a_similar_one_or_with_all():
    for name, hint in (("attentoin", "did you mean attention"), ("mamba", "choose from attention, mla")):
        with pytest.raises(UserError, match=hint):
            lookup({"attention": 1, "mla": 2}, name, "mixer")


def test_unknown_presets_and_broken_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean model-xl"):
        resolve("model-xxl")
    with pytest.raises(UserError, match="no such file"):
        resolve(str(tmp_path / "absent.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    with pytest.raises(BadFile, match="TOML"):
        resolve(str(broken))


# A value of each setting of NEEDS that is not its default, and one without effect of each setting that is needed.
OTHER_VALUES = {"model.ternary_group": "row", "model.ternary_activations": "int8", "model.ternary_norm": True}
OTHER_VALUES |= {"model.n_kv_head": 2, "model.n_stream": 4, "model.n_expert": 4, "model.qk_rope_head_dim": 4}
OTHER_VALUES |= {"optimizer.newton_schulz": "jordan", "data.vocab_size": 300, "data.bpe_rule": "randygpt"}
OTHER_VALUES |= {"model.rope_theta": 9.0, "model.rope_scale": 2.0}
WITHOUT = {"model.mixers": ("gated_delta",), "optimizer.name": "adamw", "optimizer.schedule": "linear"}


@pytest.mark.parametrize("name", NEEDS)
def test_a_setting_without_effect_is_told(name):
    other, values = NEEDS[name]
    given = {name: OTHER_VALUES.get(name, 0.25 if isinstance(Config().get(name), float) else 1)}
    assert Config().get(name) != given[name]
    [line] = without_effect(Config().replace(WITHOUT | given), given)
    assert line.startswith(f"{name} has no effect without {other}")
    for value in values or (1,):
        needed = {other: ("gated_delta", value) if other == "model.mixers" else value}
        assert not without_effect(Config().replace(WITHOUT | given | needed), [*given, other, "model.n_layer"])
    assert shapes_of(Config().replace(WITHOUT | given).model, 50) == shapes_of(Config().replace(WITHOUT).model, 50)
