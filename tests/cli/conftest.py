"""A folder with a trained run, and files to trip over."""

import shutil

import pytest
from commands import mlxgpt
from constants import SMALL


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained run, and files to trip over."""
    home = tmp_path_factory.mktemp("home")
    done = mlxgpt("train", "--corpus", "pydocs", *SMALL, cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "text.txt").write_text("to be or not to be, that is the question\n" * 60)
    (home / "other.txt").write_text("abc" * 1000)
    (home / "empty.txt").write_text("")
    (home / "short.txt").write_text("too short")
    (home / "binary.bin").write_bytes(bytes(range(256)) * 10)
    (home / "unknown.txt").write_text("жж" * 3000)
    (home / "train.toml").write_text("[train]\niters = 5\n")
    (home / "unknown.toml").write_text("[model]\nn_emdb = 32\n")
    (home / "wrong.toml").write_text('[train]\niters = "many"\n')
    (home / "vocab.json").write_text('{"vocab": ["<|bos|>", "<|eos|>", "a", "b"], "merges": []}')
    (home / "deep.toml").write_text("a = " + "[" * 100_000)
    (home / "folder").mkdir()
    run = home / "runs/custom-pydocs"
    shutil.copytree(run, home / "corrupt")
    for name in ("checkpoint.safetensors", "best.safetensors"):
        data = bytearray((run / name).read_bytes())
        data[len(data) // 2] ^= 1
        (home / "corrupt" / name).write_bytes(data)
    return home
