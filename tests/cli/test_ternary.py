"""Ternary networks on the command line: packed files, what they hold, and what is refused."""

import json
import re

import numpy as np
import pytest
from commands import mlxgpt
from serving import serving

import mlx_gpt
from mlx_gpt.checkpoint import store

# One layer of ternary-m, with a context that is fast to evaluate.
SHAPE = ["--preset=ternary-m", "--set=model.n_layer=1", "--set=model.block_size=32"]
QUICK = ["--batch=2", "--iters=2", "--eval-every=1", "--sample-every=0", "--set=optimizer.ema_decay=0.9"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a text, a ternary run in `run`, and its best checkpoint packed in small.safetensors."""
    home = tmp_path_factory.mktemp("ternary")
    (home / "text.txt").write_text("to be or not to be, that is the question\n" * 60)
    done = mlxgpt("train", "--corpus=text.txt", *SHAPE, *QUICK, "--out=run", cwd=home)
    assert done.returncode == 0, done.stderr
    assert re.search(r"eval @2: .*  zeros \d+% changed \d", done.stdout)
    done = mlxgpt("convert", "run", "small.safetensors", "--packed", cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def told(home, *command):
    done = mlxgpt(*command, "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_packed_file_has_a_tenth_of_the_weights_size_and_the_same_loss(home):
    best, small = store.load(home / "run/best.safetensors"), home / "small.safetensors"
    assert small.stat().st_size < sum(w.nbytes for w in best.weights.values()) / 10
    assert best.optimizer and not store.load(small).optimizer
    losses = [told(home, "eval", file)["loss"] for file in ("run", small)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_an_average_of_the_weights_is_packed_as_it_is(home, tmp_path):
    path = tmp_path / "average.safetensors"
    store.save(path, store.load(home / "run/checkpoint.safetensors").as_trained().as_averaged())
    done = mlxgpt("convert", path, "small.safetensors", "--packed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tokens = [[1, 2, 3, 4, 5]]
    logits = [mlx_gpt.load(file).model(tokens) for file in (path, tmp_path / "small.safetensors")]
    assert np.array_equal(*map(np.array, logits))


def test_a_packed_file_generates_the_same_text(home):
    texts = [
        mlxgpt("generate", file, "--prompt=to", "--seed=3", "--max-tokens=20", cwd=home).stdout
        for file in ("run", "small.safetensors")
    ]
    assert texts[0] == texts[1] != ""


def test_a_packed_file_is_served(home):
    with serving(mlx_gpt.load(home / "small.safetensors")) as served:
        answer = served.post(json={"prompt": "to", "max_tokens": 9, "temperature": 0}).json()
    greedy = mlxgpt("generate", "run", "--prompt=to", "--max-tokens=9", "--temp=0", cwd=home).stdout
    assert "to" + answer["choices"][0]["text"] == greedy.rstrip("\n")


def test_inspect_describes_the_ternary_matrices(home):
    run, small = (told(home, "inspect", file)["ternary"] for file in ("run", "small.safetensors"))
    assert run | {"bits_per_weight": 0} == small | {"bits_per_weight": 0}
    assert run["bits_per_weight"] == 32 and 2 < small["bits_per_weight"] < 2.001
    assert (run["group"], run["scales"]) == ("tensor", 7) and 0 < run["min_scale"] <= run["max_scale"] < 1
    assert 0.1 < run["zeros"] < 0.5
    text = mlxgpt("inspect", "small.safetensors", cwd=home).stdout
    assert re.search(r"ternary +2 bits per weight, \d+\.\d% zeros, group tensor, 7 scales from 0\.\d+ to 0\.\d+", text)


def test_the_plan_tells_the_sizes_of_the_packed_weights(home):
    command = ["train", "--corpus=text.txt", *SHAPE, *QUICK, "--plan"]
    plan = told(home, *command)
    weights = store.load(home / "small.safetensors").weights
    assert plan["packed_bytes"] == sum(w.nbytes for w in weights.values()) < plan["packed_gpu_bytes"]
    assert plan["packed_gpu_bytes"] < plan["float_bytes"] / 5 and plan["float_bytes"] == 4 * plan["parameters"]
    assert f"packed       {plan['packed_bytes'] / 1e6:.1f} MB on disk" in mlxgpt(*command, cwd=home).stdout


@pytest.mark.parametrize(
    "command, code, words",
    [
        (
            ["train", "--resume", "small.safetensors"],
            4,
            "small.safetensors: is packed, .* train the checkpoint that it was converted from",
        ),
        (["train", "--fine-tune", "small.safetensors"], 4, "small.safetensors: is packed, .* train the checkpoint"),
        (
            ["train", "--fine-tune=small.safetensors", "--set=model.linear=ternary"],
            4,
            "is packed, .* train the checkpoint",
        ),
        (["convert", "small.safetensors", "a.bin"], 2, 'rgpt0002 holds only .*model.linear="ternary-packed"'),
        (["convert", "run", "run/best.safetensors", "--force"], 2, "run/best.safetensors: is the file that is read"),
        (
            ["convert", "run", "a.gguf", "--format", "nanochat", "--mhc", "run/best.safetensors", "--force"],
            2,
            "--mhc run/best.safetensors is the file to read or to write, too",
        ),
        (
            ["convert", "run", "a.bin", "--packed"],
            2,
            "--packed is for safetensors files, not for rgpt0002; name a file",
        ),
        (
            ["convert", "small.safetensors", "b.safetensors", "--packed"],
            2,
            "small.safetensors is packed already; leave out --packed",
        ),
    ],
)
def test_what_a_packed_file_cannot_do_is_refused_in_one_line(home, command, code, words):
    done = mlxgpt(*command, cwd=home)
    assert done.returncode == code and re.search(words, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1 and not list(home.glob("[ab].*"))
