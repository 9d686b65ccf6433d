"""`mlxgpt rl` and `mlxgpt pipeline`: from the command line to the files, and what is refused."""

import json
import shutil

import pytest
from checkpoints import far_from_start
from commands import mlxgpt

from mlx_gpt.checkpoint import store
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.watch.metrics import read_metrics

TEXT = "the quick brown fox jumps over a lazy dog\n" * 40
REWARD = 'def reward(prompt, text):\n    return {"letters": text.count("a") / 8}\n'


@pytest.fixture
def folder(tmp_path):
    """A folder with a checkpoint, its text, a reward and prompts."""
    model = ModelConfig(n_embd=24, n_head=2, n_layer=1, block_size=32)
    store.save(tmp_path / "model.safetensors", far_from_start(model, CharTokenizer.train(TEXT)))
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the "}\n{"prompt": "a lazy"}\n')
    return tmp_path


OPTIONS = ("--reward", "reward.py", "--prompts", "prompts.jsonl")
SMALL = (*OPTIONS, "--corpus", "text.txt", "--max-tokens", "8", "--groups", "2", "--samples", "4")


def test_a_run_learns_saves_and_resumes(folder):
    done = mlxgpt("rl", "model.safetensors", *SMALL, "--iters", "3", "--out", "run", cwd=folder)
    assert done.returncode == 0 and "Iter    3/3" in done.stdout and "reward: " in done.stdout, done.stderr
    steps = [line for line in read_metrics(folder / "run/metrics.jsonl") if line["report"] == "step"]
    assert len(steps) == 3 and steps[0].keys() >= {"reward", "reward.letters", "distinct", "kl", "H", "clipped"}
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-5) and steps[0]["clipped"] == 0
    assert len((folder / "run/rollouts.jsonl").read_text().splitlines()) == 3 * 8
    done = mlxgpt("rl", "--resume", "run", "--iters", "5", cwd=folder)
    assert done.returncode == 0 and "resuming at step 3 of 5" in done.stdout, done.stderr
    assert len((folder / "run/rollouts.jsonl").read_text().splitlines()) == 5 * 8
    again = mlxgpt("rl", "--resume", "run", cwd=folder)
    assert again.returncode == 0 and "nothing to do" in again.stderr


def test_a_plan_writes_nothing(folder):
    before = {path.name for path in folder.iterdir()}
    done = mlxgpt("rl", "model.safetensors", *SMALL, "--plan", "--json", cwd=folder)
    plan = json.loads(done.stdout)
    assert done.returncode == 0 and plan["iters"] == 100 and plan["epochs"] == 0, done.stderr
    assert plan["tokens"] == 100 * plan["tokens_per_step"]
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nothing.safetensors",), "nothing.safetensors: no such file"),
        (("model.safetensors", "--objective", "grop"), "did you mean train.objective=grpo"),
        (("model.safetensors", "--objective", "ppo"), "choose from grpo, dr-grpo, gspo, maxrl, rft"),
        (("model.safetensors", "--objective", "cross-entropy"), "is not an objective of rewards"),
        (("model.safetensors", "--reward", "tests"), "has no tests"),
        (("model.safetensors", "--reward", "none.py"), "none.py: no such file"),
        (("model.safetensors", "--reward", "best"), "unknown reward"),
        (("model.safetensors", "--prompts", "none.jsonl"), "none.jsonl: no such file"),
        (("model.safetensors", "--language", "cobol"), "unknown language"),
        (("model.safetensors", "--samples", "1"), "give --samples 2 or more"),
        (("model.safetensors", "--samples", "0"), "rl.group_size=0 is not allowed"),
        (("model.safetensors", "--temp", "0"), "rl.temperature=0.0 is not allowed"),
        (("model.safetensors", "--max-tokens", "500"), "--max-tokens 500: the shortest prompt has"),
        (("model.safetensors", "--kl", "-1"), "rl.kl_weight=-1.0 is not allowed"),
        (("model.safetensors", "--kl", "1", "--set", "rl.kl_weight=2"), "are the same; give one of them"),
        (("model.safetensors", "--resume", "run"), "give one of them"),
        (("--resume", "nowhere"), "nowhere"),
        (("--resume", "model.safetensors"), "model.safetensors: was trained on text"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(folder, arguments, words):
    given = (*arguments, *(() if "--resume" in arguments else ("--corpus", "text.txt")))
    given += () if {"--reward", "--language", "--prompts"} & set(arguments) else OPTIONS
    given += ("--prompts", "prompts.jsonl") if "--reward" in arguments else ()
    done = mlxgpt("rl", *given, cwd=folder)
    assert done.returncode in (2, 3, 4) and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith("error: ")
    assert not (folder / "runs").exists()


def test_programs_are_executed_only_if_that_is_allowed(folder):
    (folder / "tested.jsonl").write_text('{"prompt": "a", "entry_point": "f", "test": "f()"}')
    given = ("--reward", "tests", "--prompts", "tested.jsonl", "--corpus", "text.txt")
    done = mlxgpt("rl", "model.safetensors", *given, cwd=folder)
    assert done.returncode == 2 and "executes what the model writes, in a sandbox; allow it with --exec" in done.stderr
    settings = ("train.objective=grpo", "rl.reward=tests", "rl.prompts=tested.jsonl", "model.dropout=0")
    sets = [part for setting in settings for part in ("--set", setting)]
    done = mlxgpt("train", "--fine-tune", "model.safetensors", *sets, "--corpus", "text.txt", cwd=folder)
    assert done.returncode == 2 and "allow it with --execute" in done.stderr


STAGES = """
[[stage]]
command = "train"
corpus = "text.txt"
iters = 3
batch = 2
sample-every = 0
set = ["model.n_embd=24", "model.n_head=2", "model.n_layer=1", "model.block_size=32"]

[[stage]]
command = "rl"
reward = "reward.py"
prompts = "prompts.jsonl"
max-tokens = 8
groups = 2
samples = 4
iters = 2

[[stage]]
command = "eval"
split = "all"
"""


def test_a_pipeline_prints_its_commands(folder):
    (folder / "all.toml").write_text(STAGES)
    done = mlxgpt("pipeline", "all.toml", "--plan", cwd=folder)
    train, rl, evaluation = done.stdout.splitlines()
    assert done.returncode == 0 and train.endswith("--out runs/all/1-train") and "--set=model.n_embd=24" in train
    assert rl.startswith("mlxgpt rl runs/all/1-train --reward=reward.py") and rl.endswith("--out runs/all/2-rl")
    assert evaluation == "mlxgpt eval runs/all/2-rl --split=all --json" and not (folder / "runs").exists()


def test_a_stage_that_continues_keeps_what_its_folder_does_not(folder):
    (folder / "all.toml").write_text(STAGES.replace("iters = 3", 'iters = 3\nlog = "tensorboard"\nalert = "true"'))
    (folder / "runs/all/1-train").mkdir(parents=True)
    shutil.copy(folder / "model.safetensors", folder / "runs/all/1-train/checkpoint.safetensors")
    done = mlxgpt("pipeline", "all.toml", "--plan", cwd=folder)
    first = done.stdout.splitlines()[0]
    assert first == "mlxgpt train --resume runs/all/1-train --log=tensorboard --alert=true"
    shutil.rmtree(folder / "runs")


@pytest.mark.slow
def test_a_pipeline_continues_where_it_stopped(folder):
    (folder / "all.toml").write_text(STAGES.replace("reward.py", "failing.py"))
    (folder / "failing.py").write_text("def reward(prompt, text): return 1 / 0\n")
    done = mlxgpt("pipeline", "all.toml", cwd=folder)
    assert done.returncode == 2 and "2-rl: ended with exit code 2" in done.stderr
    assert store.load(folder / "runs/all/1-train/checkpoint.safetensors").header.step == 3
    (folder / "failing.py").write_text(REWARD)
    (folder / "runs/all/1-train").rename(folder / "moved")
    done = mlxgpt("pipeline", "all.toml", cwd=folder)
    assert done.returncode == 2 and "2-rl: needs the run runs/all/1-train, which is missing" in done.stderr
    (folder / "moved").rename(folder / "runs/all/1-train")
    done = mlxgpt("pipeline", "all.toml", cwd=folder)
    assert done.returncode == 0 and "1-train: complete" in done.stderr and "all 3 stages are complete" in done.stderr
    assert store.load(folder / "runs/all/2-rl/checkpoint.safetensors").header.step == 2
    assert json.loads((folder / "runs/all/3-eval.json").read_text())["split"] == "all"
    done = mlxgpt("pipeline", "all.toml", cwd=folder)
    assert done.returncode == 0 and "3-eval: complete" in done.stderr
    (folder / "all.toml").write_text(STAGES)
    done = mlxgpt("pipeline", "all.toml", cwd=folder)
    assert done.returncode == 2 and "runs/all/2-rl: was made with other options" in done.stderr


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "has no stages"),
        ("[stage]\ncommand = 'train'", "has no stages"),
        ("more = 1\n" + STAGES, "has no stages"),
        ("[[stage]]\niters = 3", "stage 1: command=None is not allowed; choose from train, rl, eval-code, eval"),
        ("[[stage]]\ncommand = 'dance'", "stage 1: command='dance' is not allowed"),
        ("[[stage]]\ncommand = 'rl'", "stage 1: rl needs a model; begin with a stage whose command is train"),
        (STAGES + "itres = 3", "stage 3: No such option '--itres'"),
        (STAGES.replace("iters = 3", "iters = 'many'"), "stage 1: Invalid value for '--iters'"),
        (STAGES.replace("iters = 3", "iters = {a = 1}"), "stage 1: iters={'a': 1} is not allowed"),
        (STAGES.replace("batch = 2", "batch = 0"), "stage 1: train.batch_size=0 is not allowed"),
        (STAGES.replace("n_head=2", "n_head=7"), "stage 1: model.n_head=7 does not divide"),
        (STAGES.replace("reward.py", "missing.py"), "stage 2: missing.py: no such file"),
        (STAGES.replace("samples = 4", "samples = 1"), "stage 2: rl.group_size=1: grpo compares the texts"),
        (
            STAGES + "\n[[stage]]\ncommand = 'eval-code'\nproblems = 'no.jsonl'",
            "stage 4: problems no.jsonl: a file has",
        ),
        (STAGES.replace("iters = 3", "out = 'x'"), "stage 1: out cannot be given for a stage"),
        (STAGES.replace("iters = 3", "join = 'localhost:1:x'"), "stage 1: join cannot be given for a stage"),
        (STAGES.replace("iters = 3", "resume = true"), "stage 1: resume cannot be given for a stage"),
        ("[[stage]\n", "all.toml"),
    ],
)
def test_pipelines_that_cannot_run_are_refused_before_they_begin(folder, text, words):
    (folder / "all.toml").write_text(text)
    done = mlxgpt("pipeline", "all.toml", cwd=folder)
    assert done.returncode in (2, 3) and words in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (folder / "runs").exists()
