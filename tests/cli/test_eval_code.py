"""`mlxgpt eval-code`: what it prints, its JSON, its history, and mistakes of a user."""

import json
import re
import shutil

import pytest
from commands import mlxgpt
from constants import SMALL

from mlx_gpt.code import history
from mlx_gpt.rl.sandbox import isolation

QUICK = ["--language=python", "--limit=3", "--samples=2", "--max-tokens=8"]
TESTED = {
    "task_id": "t/0",
    "prompt": "def f():\n    return 1\n",
    "entry_point": "f",
    "canonical_solution": "",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run on Python code in `run`, and files of problems."""
    home = tmp_path_factory.mktemp("code")
    (home / "code.txt").write_text("".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(400)))
    byte_level = ["--bpe=300", "--byte-level"]
    done = mlxgpt("train", "--corpus=code.txt", *SMALL, *byte_level, "--out=run", cwd=home)
    assert done.returncode == 0, done.stderr
    done = mlxgpt("train", "--corpus=code.txt", *SMALL, "--out=narrow", cwd=home)
    assert done.returncode == 0, done.stderr
    shutil.copy(home / "run/best.safetensors", home / "alone.safetensors")
    (home / "p.jsonl").write_text(json.dumps(TESTED) + "\n")
    (home / "twice.jsonl").write_text((json.dumps(TESTED) + "\n") * 2)
    (home / "empty.jsonl").write_text("")
    (home / "text.jsonl").write_text("def f():\n")
    (home / "binary.jsonl").write_bytes(bytes(range(256)))
    (home / "p.jsonl.gz").write_bytes(b"\x1f\x8b no")
    (home / "folder").mkdir()
    return home


def printed(home, *arguments):
    done = mlxgpt("eval-code", *arguments, cwd=home)
    assert done.returncode == 0, done.stderr
    return done


def test_the_tables_the_examples_and_the_summary(home):
    done = printed(home, "run", *QUICK)
    assert re.search(r"^ *python/is_even +\d +\d +\d +- ", done.stdout, re.M)
    for row in ("parses", "compiles", "defines", "valid", "ended"):
        assert re.search(rf"^ *{row} +\d+\.\d \(\d+\.\d-\d+\.\d\)", done.stdout, re.M), row
    assert len(re.findall(r"^--- python/\w+: ", done.stdout, re.M)) == 3
    last = done.stdout.splitlines()[-1]
    assert last.startswith("run/best.safetensors: 6 samples of 3 prompts: ") and "nothing was executed" in last
    assert "executed" not in done.stderr


def test_json_has_every_sample_and_repeats(home):
    found, again = (json.loads(printed(home, "run", *QUICK, "--json").stdout) for _ in range(2))
    assert found["checkpoint"] == "run/best.safetensors" and found["step"] == 12 and found["total_samples"] == 6
    assert found["settings"]["samples"] == 2 and found["settings"]["execute"] is False
    assert [p["task_id"] for p in found["samples_by_prompt"]] == ["python/is_even", "python/clamp", "python/fibonacci"]
    texts = [[sample["text"] for sample in p["samples"]] for p in found["samples_by_prompt"]]
    assert texts == [[sample["text"] for sample in p["samples"]] for p in again["samples_by_prompt"]]
    assert all(sample["outcome"] is None for p in found["samples_by_prompt"] for sample in p["samples"])
    assert found["totals"]["passes"]["share"] is None


def test_execution_is_explained_and_counts_what_passes(home):
    """The prompt is a whole program. It passes if the model adds nothing that breaks it."""
    arguments = [
        "run",
        "--problems=p.jsonl",
        "--language=python",
        "--samples=2",
        "--max-tokens=4",
        "--execute",
        "--k=1",
    ]
    done = printed(home, *arguments, "--json")
    assert "programs that the model wrote are executed" in done.stderr and str(isolation()) in done.stderr
    found = json.loads(done.stdout)
    [prompt] = found["samples_by_prompt"]
    passed = [sample["passed"] for sample in prompt["samples"]]
    assert found["totals"]["passes"]["count"] == sum(passed)
    assert found["totals"]["pass_at_k"]["1"]["value"] == sum(passed) / 2
    assert all(sample["outcome"] for sample in prompt["samples"] if sample["compiles"])
    assert " pass" in printed(home, *arguments).stdout.splitlines()[-1]


def test_k_above_the_number_of_samples_is_told(home):
    arguments = ["--problems=p.jsonl", "--language=python", "--samples=1", "--max-tokens=1", "--execute"]
    done = printed(home, "run", *arguments)
    assert "pass@10: 1 problems with fewer than 10 samples are left out; raise --samples" in done.stderr
    assert re.search(r"^ *pass@10 +- *$", done.stdout, re.M)


def test_baselines_are_further_columns(home):
    done = printed(home, "run", "--language=python", "--limit=1", "--samples=1", "--max-tokens=4", "--baselines")
    assert re.search(r"checkpoint +untrained +5-gram", done.stdout)
    assert re.search(r"^ *parses( +\d+\.\d \([\d.-]+\)){3} *$", done.stdout, re.M)


def test_the_history_of_a_run_has_its_checkpoints(home):
    for name in ("best.safetensors", "checkpoint.safetensors"):
        done = printed(home, f"run/{name}", *QUICK, "--history")
    lines = [json.loads(line) for line in (home / "run" / history.NAME).read_text().splitlines()]
    assert [line["checkpoint"] for line in lines] == ["run/best.safetensors", "run/checkpoint.safetensors"]
    assert re.search(r"^ *12 +\d+\.\d \(", done.stdout, re.M)
    done = printed(home, "run", *QUICK, "--history", "--seed=1")
    assert "2 results with other settings are not shown" in done.stderr


def test_control_characters_of_a_text_do_not_reach_the_terminal(home):
    done = printed(home, "run", "--language=python", "--limit=1", "--samples=1", "--max-tokens=60", "--temp=3")
    assert all(c.isprintable() or c == "\n" for c in done.stdout)


SILLY = [
    # arguments, exit code, words of the one line
    ("absent", 2, "absent: no such file"),
    ("folder", 2, "folder: is a folder without a checkpoint"),
    ("p.jsonl", 3, "p.jsonl"),
    ("run --samples 0", 2, "--samples 0"),
    ("run --samples many", 2, "--samples many"),
    ("run --limit 0", 2, "--limit 0"),
    ("run --max-tokens 0", 2, "--max-tokens 0"),
    ("run --temp -1", 2, "temperature=-1"),
    ("run --temp nan", 2, "temperature=nan"),
    ("run --top-k -1", 2, "top_k=-1"),
    ("run --k 0", 2, "--k 0"),
    ("run --language java", 2, "--language java python rust all"),
    ("run --language python --language rust", 2, "--language twice"),
    ("run --problems absent.jsonl --language python", 2, "absent.jsonl no such file"),
    ("run --problems p.jsonl", 2, "p.jsonl one language --language"),
    ("run --problems empty.jsonl --language python", 3, "empty.jsonl no problems"),
    ("run --problems twice.jsonl --language python", 3, "twice.jsonl line 2 t/0 before"),
    ("run --problems text.jsonl --language python", 3, "text.jsonl line 1 JSON"),
    ("run --problems binary.jsonl --language python", 3, "binary.jsonl"),
    ("run --problems p.jsonl.gz --language python", 3, "p.jsonl.gz gzip"),
    ("run --problems folder --language python", 3, "folder"),
    ("run --problems /dev/zero --language python", 3, "/dev/zero device"),
    ("run --problems rust-basics --language python", 2, "rust-basics rust python"),
    ("alone.safetensors --history", 2, "alone.safetensors no run folder --history"),
    ("run --execute=yes", 2, "--execute"),
    ("run --baselines --corpus absent.txt --limit 1 --samples 1 --max-tokens 1", 2, "absent.txt no such"),
    ("narrow", 2, "tokenizer no prompt python/is_even characters"),
]


@pytest.mark.parametrize("arguments, code, words", SILLY)
def test_a_mistake_is_one_line(home, arguments, code, words):
    done = mlxgpt("eval-code", *arguments.split(), cwd=home)
    assert done.returncode == code, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ") and not [word for word in words.split() if word not in line], line
