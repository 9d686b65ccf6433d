"""Slow proofs about text: a gigabyte read from disk, and a text of known entropy learned to its rate."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
from constants import ROOT

from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.markov import Chain
from mlx_gpt.watch.metrics import read_metrics

pytestmark = pytest.mark.slow
GIGABYTE = 10**9
MEASURED = """
import resource, sys
from mlx_gpt.cli.main import main
try:
    main()
finally:
    print("resident", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
"""


def start(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cwd / "cache"), "MLXGPT_TUNED": "off"}
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments, cwd):
    process = start(*arguments, cwd=cwd)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss has another unit there")
def test_a_gigabyte_is_tokenised_and_trained_on_without_being_read_whole(tmp_path):
    """Interrupted on the way, gone on with, within 1.5 GB; trained on from the file."""
    source, draw = "\n".join(open_corpus(["stdlib"]).documents), random.Random(0)
    with open(tmp_path / "big.txt", "w") as file:
        while file.tell() < GIGABYTE:  # noise in some lines, so that no two copies are alike
            noisy = (line if draw.random() < 0.9 else line + f" # {draw.random()}" for line in source.split("\n"))
            file.write("\n".join(noisy) + "\n")
    small = ["--set=model.n_embd=32", "--set=model.n_head=2", "--set=model.n_layer=1", "--set=model.block_size=64"]
    small += ["--iters=4", "--eval-every=2", "--sample-every=0", "--set=train.eval_windows=8", "--out=run"]
    command = ["train", "--corpus=big.txt", "--bpe=2000", "--set=data.device_mb=64", *small]
    first = start(*command, cwd=tmp_path)
    while first.poll() is None and not list(tmp_path.glob("cache/mlxgpt/tokens/*.json")):
        time.sleep(0.1)
    first.kill()
    first.communicate()
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming its encoding" in done.stderr
    resident = int(done.stderr.rpartition("resident ")[2])
    assert resident < 1.5e9, resident
    assert [r["step"] for r in read_metrics(tmp_path / "run/metrics.jsonl") if r["report"] == "step"] == [1, 2, 3, 4]


def test_a_text_of_known_entropy_is_learned_to_one_hundredth(tmp_path):
    shape = ["--set=model.n_embd=64", "--set=model.n_head=2", "--set=model.n_layer=2", "--set=model.block_size=256"]
    rest = ["--batch=8", "--iters=2000", "--eval-every=1000", "--set=train.save_minutes=0", "--set=model.dropout=0"]
    done = run("train", "--corpus=markov:2", *shape, *rest, "--sample-every=0", "--json", "--out=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stop = json.loads(done.stdout.splitlines()[-1])
    rate = Chain(2).entropy_rate()
    assert rate * 0.99 < stop["best_loss"] < rate * 1.01, (stop["best_loss"], rate)
