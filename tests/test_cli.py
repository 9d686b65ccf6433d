"""The command line: the commands as typed, their JSON, and the silly things users type."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import mlxgpt, process
from conftest import ROOT, TINY, TINY_SHAPE
from test_compatibility import assert_still_there, kept, todays

from mlx_gpt import bench
from mlx_gpt.bench import race
from mlx_gpt.cli import main
from mlx_gpt.data.corpus import open_corpus

COMMANDS = ["train", "generate", "eval", "convert", "inspect", "corpus", "corpus list", "doctor", "bench", "compare"]
COMMANDS += ["serve", "export", "push"]
COMMANDS += [
    "tokenizer",
    "corpus stats",
    *(f"tokenizer {name}" for name in ("train", "encode", "decode", "inspect", "convert")),
]
SMALL = [f"--set={k}={v}" for k, v in TINY.items()] + ["--batch=4", "--iters=12", "--eval-every=6"]
SMALL += ["--sample-every=0", "--set=data.val_fraction=0.002"]


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
    (home / "folder").mkdir()
    run = home / "runs/custom-pydocs"
    shutil.copytree(run, home / "corrupt")
    for name in ("checkpoint.safetensors", "best.safetensors"):
        data = bytearray((run / name).read_bytes())
        data[len(data) // 2] ^= 1
        (home / "corrupt" / name).write_bytes(data)
    return home


# -- as typed -------------------------------------------------------------------------------------------------------


def test_help_answers_without_loading_mlx(tmp_path):
    code = f"""
import sys
from click.testing import CliRunner
from mlx_gpt.cli.main import cli
for command in {["", *COMMANDS]}:
    shown = CliRunner().invoke(cli, [*command.split(), "--help"])
    assert shown.exit_code == 0, shown.output
    loaded = {{"mlx", "mlx.core", "numpy", "rich.live", "requests"}} & set(sys.modules)
    assert not loaded, (command, loaded)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_line_of_help_of_a_command_is_its_own(name):
    """At every width, though the command is not imported for it."""
    stand_in, command = main.cli.commands[name], main.cli.load(name)
    assert command.name == name
    assert stand_in.help == command.get_short_help_str(1000)
    for width in (20, 45, 70):
        assert stand_in.get_short_help_str(width) == command.get_short_help_str(width)


def test_a_misspelled_command_is_told_the_nearest(tmp_path):
    assert "'train'" in mlxgpt("trian", cwd=tmp_path).stderr


def test_a_run_folder_holds_what_tools_rely_on(home):
    run = home / "runs/custom-pydocs"
    assert {p.name for p in run.iterdir()} >= {
        "run.toml",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "best.safetensors",
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "val_loss" in line] == [6, 12]
    assert all(line["tokens"] == line["step"] * 4 * 64 for line in lines if line["report"] in ("step", "eval"))
    assert lines[-1]["report"] == "stop"


def test_plain_output_reads_like_a_log(tmp_path):
    done = mlxgpt("train", "--corpus", "pydocs", *SMALL, "--set=train.log_every=4", cwd=tmp_path)
    assert "\x1b" not in done.stdout
    assert all(
        word in done.stdout
        for word in (
            "Iter    4/12 | Loss: ",
            "| LR: ",
            "ms/iter",
            "ETA",
            "Total time: ",
            "(12 iters)",
            "saved",
            "parameters",
        )
    )


def test_json_output_is_one_object_a_line_and_nothing_else(tmp_path):
    done = mlxgpt("train", "--corpus", "pydocs", *SMALL, "--json", cwd=tmp_path)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["report"] for r in reports[-3:]] == ["save", "save", "stop"]
    assert sum(r["report"] == "step" for r in reports) == 12


def test_generate_takes_the_best_of_the_newest_run(home):
    done = mlxgpt("generate", "--top-p", "0.9", "--temp", "0.8", "--max-tokens", "20", "--seed", "3", cwd=home)
    assert done.returncode == 0 and "20 tokens" in done.stderr and 1 < len(done.stdout) <= 21
    assert "runs/custom-pydocs/best.safetensors: 20 tokens" in done.stderr
    again = mlxgpt("generate", "runs/custom-pydocs/best.safetensors", "--max-tokens", "20", "--seed", "3", cwd=home)
    assert again.stdout == done.stdout
    several = mlxgpt("generate", "--prompt", "The ", "-n", "2", "--max-tokens", "5", "--seed", "7", "--json", cwd=home)
    rows = [json.loads(line) for line in several.stdout.splitlines()]
    assert len(rows) == 2 and [row["seed"] for row in rows] == [7, 8] and 1 <= rows[0]["tokens"] <= 5


def test_eval_and_inspect_tell_what_the_run_told(home):
    best = home / "runs/custom-pydocs/best.safetensors"
    facts = json.loads(mlxgpt("inspect", best, "--json", cwd=home).stdout)
    found = json.loads(mlxgpt("eval", best, "--json", cwd=home).stdout)
    assert found.keys() >= {"loss", "ppl", "bits_per_byte", "tokens"}
    assert found["loss"] == pytest.approx(facts["best_loss"], abs=1e-5)
    assert facts["n_embd"] == 32 and facts["iteration"] == facts["step"] == 12
    assert facts["tensors"]["wpe.weight"] == [64, 32]
    other = json.loads(mlxgpt("eval", best, "--corpus", home / "text.txt", "--split", "all", "--json", cwd=home).stdout)
    assert other["tokens"] == 41 * 60 - 1 and other["loss"] != found["loss"]


@pytest.mark.parametrize("command, words", [("doctor", "matmul_gflops"), ("corpus list", "public domain")])
def test_reports_come_in_words_too(command, words, tmp_path):
    """test_compatibility.py reads their JSON."""
    assert words in mlxgpt(*command.split(), cwd=tmp_path).stdout


def test_plan_and_bench_measure_and_leave_nothing(tmp_path):
    plan = json.loads(mlxgpt("train", "--corpus", "pydocs", *SMALL, "--plan", "--json", cwd=tmp_path).stdout)
    assert plan["tokens"] == 12 * 4 * 64 and plan["parameters"] > 20_000 and plan["eta_seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_bench_measures_and_keeps_a_record(tmp_path, monkeypatch):
    """The whole command on a tiny model: the tables, the record, and the same as JSON, with the fields of 0.1.0."""
    monkeypatch.setattr(race, "ROUND_SECONDS", 0.1)
    monkeypatch.setattr(bench.text, "QUICK", 50_000)
    tiny = ["bench", *SMALL[:4], "--quick", "--batch=4", "--rounds=1"]
    done = mlxgpt(*tiny, "--only", "plain MLX", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("mlxgpt ", "plain MLX", "of matmul", "backward", "decode 16", "runs/bench/bench.json"):
        assert word in done.stdout
    record = json.loads((tmp_path / "runs/bench/bench.json").read_text())
    training = record["presets"]["model-l"]["training"]
    assert training["mlxgpt"]["losses"] == pytest.approx(training["plain MLX"]["losses"], abs=2e-3)
    before = todays(kept("bench.json"))
    before["presets"] = {"model-l": before["presets"]["model-xs"]}
    assert_still_there(record, before, measured=True)
    result = record["presets"]["model-l"]
    ours = result["training"]["mlxgpt"]
    assert ours["ms_per_iter"] > 0 and ours["gflops"] > 0 and ours["peak_resident_bytes"] > 1e7
    assert result["parts"].keys() == {"data", "forward", "backward", "optimizer", "attention"}
    assert result["writing"]["mlxgpt"]["decode 16"] > 0
    assert result["config"]["train"]["batch_size"] == 4 and record["machine"]["cores"] >= 1
    monkeypatch.setattr(bench, "measure", lambda *_: result)
    monkeypatch.setattr(bench.text, "measure_apart", lambda _: record["text"])
    again = json.loads(mlxgpt(*tiny, "--only", "mlxgpt", "--json", cwd=tmp_path).stdout)
    assert again.keys() == record.keys() and again["machine"].keys() == record["machine"].keys()
    assert (again["presets"], again["text"]) == (record["presets"], record["text"])


def test_runs_are_numbered_and_resumed_by_themselves(tmp_path):
    first = mlxgpt("train", "--corpus", "pydocs", *SMALL, cwd=tmp_path)
    second = mlxgpt("train", "--corpus", "pydocs", *SMALL, cwd=tmp_path)
    assert first.returncode == second.returncode == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["custom-pydocs", "custom-pydocs-2"]
    done = mlxgpt("train", "--resume", cwd=tmp_path)
    assert done.returncode == 0 and "nothing to do" in done.stderr
    more = mlxgpt("train", "--resume", "--iters", "15", cwd=tmp_path)
    assert "resuming at iteration 12 of 15" in more.stdout
    assert more.stderr == "train.iters is now 15, it was 12\n"
    lines = map(json.loads, (tmp_path / "runs/custom-pydocs-2/metrics.jsonl").read_text().splitlines())
    curve = [line["step"] for line in lines if line["report"] in ("step", "eval")]
    assert curve == [*range(1, 7), 6, *range(7, 13), 12, 13, 14, 15, 15]


def test_an_rgpt_run_goes_on_with_its_moments(vectors, tmp_path, shakespeare):
    """From golden file to safetensors, on with training, and back to RGPT."""
    shape = [f"--set=model.{k}={v}" for k, v in TINY_SHAPE.items()]
    source = vectors / "tiny.rgpt0003.bin"
    small = [*shape, "--batch=2", "--iters=8", "--sample-every=0", "--set=train.eval_windows=4"]
    done = mlxgpt("train", "--resume", source, "--corpus", shakespeare, *small, "--out", "r", cwd=tmp_path)
    assert done.returncode == 0 and "resuming at iteration 6 of 8" in done.stdout, done.stderr
    assert mlxgpt("convert", "r/checkpoint.safetensors", "back.bin", cwd=tmp_path).returncode == 0
    facts = json.loads(mlxgpt("inspect", "back.bin", *shape, "--json", cwd=tmp_path).stdout)
    assert (facts["format"], facts["iteration"], facts["step"]) == ("RGPT0003", 8, 8)
    weights_only = mlxgpt(
        "train", "--resume", vectors / "tiny.rgpt0002.bin", "--corpus", shakespeare, *small, "--out", "s", cwd=tmp_path
    )
    assert "no optimizer moments" in weights_only.stderr and weights_only.returncode == 0
    tuned = mlxgpt(
        "train", "--fine-tune", "r/best.safetensors", "--corpus", shakespeare, *small[-4:], "--out", "t", cwd=tmp_path
    )
    assert tuned.returncode == 0 and "Iter" in tuned.stdout or "Total time" in tuned.stdout
    facts = json.loads(mlxgpt("inspect", "t/checkpoint.safetensors", "--json", cwd=tmp_path).stdout)
    assert facts["iteration"] == 8 and facts["config"]["model"]["n_embd"] == 32


@pytest.mark.parametrize("format", ["rgpt0001", "rgpt0002", "rgpt0003"])
def test_convert_round_trips_byte_for_byte(vectors, tmp_path, format):
    shape, source = [f"--set=model.{k}={v}" for k, v in TINY_SHAPE.items()], vectors / f"tiny.{format}.bin"
    assert mlxgpt("convert", source, "a.safetensors", *shape, cwd=tmp_path).returncode == 0
    assert mlxgpt("convert", "a.safetensors", "b.bin", "--format", format, cwd=tmp_path).returncode == 0
    assert (tmp_path / "b.bin").read_bytes() == source.read_bytes()


def test_a_corrupt_latest_checkpoint_is_kept_and_the_best_goes_on(home, tmp_path):
    shutil.copytree(home / "runs/custom-pydocs", tmp_path / "run")
    latest = tmp_path / "run/checkpoint.safetensors"
    latest.write_bytes(latest.read_bytes()[:-9])
    done = mlxgpt("train", "--resume", "run", "--iters", "14", cwd=tmp_path)
    assert done.returncode == 0 and "renamed to checkpoint.safetensors.corrupt-1" in done.stderr
    assert (tmp_path / "run/checkpoint.safetensors.corrupt-1").exists()


@pytest.mark.parametrize("mode", [["--bpe", "300"], ["--bpe", "400", "--byte-level"]])
def test_a_run_of_pairs_keeps_its_vocabulary(tmp_path, mode):
    """Trained once, kept with the run and in the checkpoint, gone on with, written with, taken by another run."""
    (tmp_path / "text.txt").write_text("\n".join(open_corpus(["pydocs"]).documents)[:50_000])
    small = [*SMALL, "--corpus=text.txt"]
    done = mlxgpt("train", *small, *mode, "--out=run", cwd=tmp_path)
    assert done.returncode == 0 and f"trained a vocabulary of {mode[1]} in" in done.stderr
    vocab = (tmp_path / "run/tokenizer.json").read_bytes()
    done = mlxgpt("train", "--resume", "run", "--iters=14", cwd=tmp_path)
    assert done.returncode == 0 and "vocabulary" not in done.stderr
    assert (tmp_path / "run/tokenizer.json").read_bytes() == vocab
    done = mlxgpt("generate", "run/best.safetensors", "--prompt=The", "--max-tokens=9", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["tokens"] == 9
    done = mlxgpt("train", *small, "--vocab=run/tokenizer.json", "--out=other", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "other/tokenizer.json").read_bytes() == vocab
    facts = json.loads(mlxgpt("eval", "other/best.safetensors", "--json", cwd=tmp_path).stdout)
    assert 0 < facts["bits_per_byte"] < facts["loss"] / 0.6931
    done = mlxgpt("train", "--resume", "run", "--iters=20", "--bpe=500", cwd=tmp_path)
    assert done.returncode == 4 and "the tokenizer of a run cannot change" in done.stderr


def test_the_tokenizer_commands_translate_and_agree(vectors, tmp_path):
    vocab = vectors / "bpe-1500.vocab.json"
    data = json.loads((vectors / "bpe-1500.ids.json").read_text())
    (tmp_path / "text.txt").write_text(data["text"])
    assert mlxgpt("tokenizer", "convert", vocab, "tokenizer.json", cwd=tmp_path).returncode == 0
    for known in (vocab, "tokenizer.json"):
        done = mlxgpt("tokenizer", "encode", "--vocab", known, "--json", "text.txt", cwd=tmp_path)
        assert json.loads(done.stdout) == {"ids": data["ids"]}
        (tmp_path / "ids.json").write_text(done.stdout)
        assert mlxgpt("tokenizer", "decode", "--vocab", known, "ids.json", cwd=tmp_path).stdout == data["decoded"]
    assert mlxgpt("tokenizer", "convert", "tokenizer.json", "vocab.json", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "vocab.json").read_text())["vocab"] == json.loads(vocab.read_text())["vocab"]
    facts = json.loads(mlxgpt("tokenizer", "inspect", "vocab.json", "--json", cwd=tmp_path).stdout)
    assert (facts["kind"], facts["vocab_size"]) == ("bpe", 1500)


def test_a_vocabulary_says_what_it_is_learned_from_and_is_refused_a_wrong_name_before(tmp_path):
    done = mlxgpt("tokenizer", "train", "new.json", "--bpe=150", cwd=tmp_path)
    assert done.returncode == 0 and "\ntrained on: pydocs\n" in done.stderr
    done = mlxgpt("tokenizer", "train", "vocab.json", "--byte-level", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and "name it tokenizer.json" in done.stderr


def test_a_run_whose_text_has_moved_is_told_where_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 200)
    assert mlxgpt("train", "--corpus=a.txt", *SMALL, "--out=run", cwd=tmp_path).returncode == 0
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    done = mlxgpt("train", "--resume", "run", "--iters=13", cwd=tmp_path)
    assert done.returncode == 2 and "a.txt" in done.stderr and "trained on" in done.stderr and "--corpus" in done.stderr
    assert mlxgpt("train", "--resume", "run", "--corpus=b.txt", "--iters=13", cwd=tmp_path).returncode == 0


def test_corpora_are_mixed_counted_and_read_from_disk(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.md").write_text("alpha beta gamma\n" * 100)
    (tmp_path / "notes/b.jsonl").write_text('{"text": "delta epsilon"}\n' * 50)
    facts = json.loads(mlxgpt("corpus", "stats", "notes", "--json", cwd=tmp_path).stdout)
    assert facts["documents"] == 51 and 0 < facts["order2_nats"] < 1
    mixed = ["--corpus=notes:2", "--corpus=pydocs", "--set=train.eval_windows=4"]
    losses = []
    for i, where in enumerate(["--set=data.device_mb=0", "--set=data.device_mb=9"]):
        done = mlxgpt("train", *SMALL, *mixed, where, f"--out=run{i}", "--json", cwd=tmp_path)
        losses.append([json.loads(line).get("loss") for line in done.stdout.splitlines()])
    assert losses[0] == losses[1]


# -- silly things ---------------------------------------------------------------------------------------------------

RUN = "runs/custom-pydocs"
SILLY = [
    # arguments, exit code, words of the one line
    ("train --corpus absent.txt", 2, "absent.txt no such pydocs"),
    ("train --corpus empty.txt", 3, "empty.txt empty"),
    ("train --corpus folder", 3, "folder .txt .jsonl"),
    ("train --corpus binary.bin", 3, "binary.bin byte 128 UTF-8"),
    ("train --corpus short.txt", 2, "short 257 longer"),
    ("train --corpus /dev/zero", 3, "/dev/zero device"),
    ("train --corpus pydocs --corpus pydocs", 2, "pydocs 2 times pydocs:2"),
    ("train --batch 65536", 6, "65536 sequences GB --batch --accum"),
    ("train --preset text.txt", 3, "text.txt TOML"),
    ("train --preset folder", 2, "unknown preset TOML folder"),
    ("train --out=", 2, "--out empty"),
    ("train --resume=", 2, "--resume is empty"),
    ("train --resume --out absent", 2, "--out absent no run there"),
    ("train --iters 0", 2, "train.iters=0 from"),
    ("train --iters many", 2, "--iters many"),
    ("train --iters 5 --set train.iters=6", 2, "train.iters twice"),
    ("train --minutes -1", 2, "train.minutes=-1"),
    ("train --lr -1", 2, "learning_rate=-1"),
    ("train --lr 0", 2, "learning_rate=0"),
    ("train --lr nan", 2, "learning_rate=nan"),
    ("train --lr 1e-3 --min-lr 1e-2", 2, "min_learning_rate --min-lr"),
    ("train --batch 0", 2, "batch_size=0"),
    ("train --dtype float8", 2, "float8 bfloat16"),
    ("train --seed -1", 2, "train.seed=-1"),
    ("train --preset model-q", 2, "model-q"),
    ("train --preset model-xxl", 2, "model-xl"),
    ("train --recipe ranygpt", 2, "ranygpt randygpt"),
    ("train --set model.n_haed=4", 2, "n_haed n_head"),
    ("train --set model.n_head=7", 2, "n_head=7 divide 8"),
    ("train --set model.n_head", 2, "--set TABLE.KEY=VALUE"),
    ("train --set n_head=4", 2, "--set"),
    ("train --iterz 5", 2, "--iterz --iters"),
    ("trian", 2, "trian"),
    (f"train --out {RUN}", 2, "--resume --out"),
    ("train --out text.txt", 2, "text.txt"),
    ("train --out text.txt/run --iters 1", 2, "text.txt"),
    ("train --resume absent", 2, "absent no such"),
    ("train --resume corrupt", 3, "corrupt SHA-256"),
    ("train --resume corrupt/checkpoint.safetensors", 3, "corrupt SHA-256"),
    ("train --resume text.txt", 3, "text.txt neither"),
    ("train --resume folder", 2, "folder no checkpoint"),
    (f"train --resume {RUN} --preset model-xs", 4, "n_embd 116 32"),
    (f"train --resume {RUN} --set model.n_layer=3 --iters 20", 4, "n_layer 3 2"),
    (f"train --resume {RUN} --corpus text.txt --iters 20", 4, "text not the text of this run"),
    (f"train --resume {RUN} --set data.val_fraction=0.2 --iters 20", 4, "val_fraction 0.2 0.002"),
    (f"train --resume --fine-tune {RUN}/best.safetensors", 2, "--resume --fine-tune"),
    (f"train --fine-tune {RUN}/best.safetensors --corpus other.txt --set model.n_embd=64", 4, "n_embd 64 32"),
    (f"eval {RUN}/best.safetensors --corpus unknown.txt", 2, "corpus unknown 'ж' U+0436 not in the vocabulary"),
    ("train --fine-tune absent.safetensors", 2, "absent.safetensors no such"),
    ("generate absent.safetensors", 2, "absent.safetensors no such"),
    ("generate text.txt", 3, "text.txt neither"),
    ("generate folder", 2, "folder without a checkpoint"),
    ("generate corrupt/best.safetensors", 3, "SHA-256"),
    ("generate --temp -1", 2, "temperature=-1"),
    ("generate --top-p 0", 2, "top_p=0"),
    ("generate --top-k -5", 2, "top_k=-5"),
    ("generate --max-tokens -1", 2, "max_tokens=-1"),
    ("generate --prompt жук", 2, "'ж' U+0436"),
    ("generate --set train.iters=5", 2, "train.iters model.n_head"),
    ("eval absent.safetensors", 2, "absent.safetensors no such"),
    ("eval --corpus absent.txt", 2, "absent.txt"),
    ("inspect text.txt", 3, "text.txt neither"),
    (f"convert {RUN}/best.safetensors text.txt", 2, "text.txt already --force"),
    (f"convert {RUN}/best.safetensors absent/x.bin", 2, "absent/x.bin No such"),
    (f"convert {RUN}/best.safetensors {RUN}/best.safetensors --force", 2, "best.safetensors the file that is read"),
    (f"convert {RUN}/best.safetensors folder --force", 2, "folder name a file in it"),
    (f"convert {RUN}/best.safetensors x.bin --format rgpt0004", 2, "rgpt0004"),
    ("convert absent x.bin", 2, "absent no such"),
    ("corpus lst", 2, "lst"),
    ("train --byte-level", 2, "--byte-level --bpe"),
    ("train --bpe 300 --vocab v.json", 2, "--bpe --vocab"),
    ("train --bpe many", 2, "--bpe many number 2000"),
    ("train --corpus markov:-1", 2, "markov:-1 order 0 4"),
    ("tokenizer train absent/x.json --corpus pydocs", 2, "absent no such folder"),
    (f"compare {RUN} --plot absent/c.png", 2, "absent no such folder"),
    ("train --bpe 20", 2, "20 too small characters"),
    ("train --bpe 100 --byte-level", 2, "100 too small bytes 258"),
    ("train --vocab absent.json", 2, "absent.json no such file"),
    ("train --vocab text.txt", 3, "text.txt JSON"),
    ("train --corpus pydocs:0", 2, "pydocs:0 above 0"),
    ("train --corpus pydocs --corpus pydocs:2", 2, "pydocs 2 times weight"),
    ("train --corpus markov:7", 2, "markov:7 order 0 4"),
    ("train --corpus *.csv", 2, "*.csv matches no file"),
    ("train --set data.unknown=keep", 2, "keep drop refuse"),
    (f"train --resume {RUN} --bpe 300 --iters 20", 4, "data.tokenizer bpe char new run"),
    ("tokenizer encode text.txt", 2, "--vocab"),
    ("tokenizer encode absent.txt --vocab absent.json", 2, "absent.json no such"),
    ("tokenizer inspect binary.bin", 3, "binary.bin JSON"),
    ("tokenizer train text.txt --corpus pydocs", 2, "text.txt already --force"),
    ("tokenizer train folder --corpus pydocs", 2, "folder name a file"),
    ("tokenizer train x.json --corpus pydocs --bpe 10", 2, "10 too small"),
    ("tokenizer convert absent.json x.json", 2, "absent.json no such"),
    ("corpus stats absent.txt", 2, "absent.txt no such"),
    ("generate --vocab absent.json", 2, "absent.json no such"),
    ("compare", 2, "RUN"),
    ("compare absent", 2, "absent no such run"),
    ("compare folder", 2, "folder metrics.jsonl"),
    ("compare text.txt", 2, "metrics.jsonl"),
    (f"compare {RUN} --at low", 2, "--at low"),
    (f"compare {RUN} --plot curves.gif", 2, "curves.gif .png .svg"),
    ("train --set optimizer.name=sgd", 2, "sgd adamw muon lion"),
    ("train --set optimizer.schedule=step", 2, "step cosine linear wsd"),
    ("train --set optimizer.ema_decay=1", 2, "ema_decay=1 0.999999"),
    ("train --set optimizer.muon_learning_rate=0", 2, "muon_learning_rate=0"),
    ("train --set model.positions=rope", 2, "rope learned rotary"),
    ("train --set model.positions=rotary --heads 256", 2, "rotary n_embd=256 n_head=256 even"),
    (f"train --resume {RUN} --set model.qk_norm=true --iters 20", 4, "qk_norm True False"),
    (f"train --fine-tune {RUN}/best.safetensors --set model.positions=rotary", 4, "positions rotary learned"),
]


@pytest.mark.parametrize("line, code, words", SILLY, ids=[row[0] for row in SILLY])
def test_a_silly_input_gets_one_helpful_line(home, line, code, words):
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*") if p.is_file()}
    done = mlxgpt(*line.split(), cwd=home)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and not done.stdout
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in errors[0] for word in words.split()), done.stderr
    after = {p: p.stat().st_mtime_ns for p in home.rglob("*") if p.is_file()}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_reader_that_goes_away_ends_the_run_saved(home, tmp_path, extra):
    slow = ["train", "--corpus", "pydocs", *SMALL, "--set=train.log_every=1", "--out", tmp_path / "run", *extra]
    slow[slow.index("--iters=12")], slow[slow.index("--eval-every=6")] = "--iters=100000", "--eval-every=500"
    with process(*slow, cwd=home) as running:
        for _ in range(8):
            running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 141
    assert (tmp_path / "run/checkpoint.safetensors").exists()


def test_a_run_that_blows_up_ends_with_5_and_keeps_nothing_of_it(tmp_path):
    wild = [*SMALL, "--iters=200", "--lr=10", "--set=optimizer.warmup_steps=0", "--set=optimizer.clip_mode=none"]
    wild.remove("--iters=12")
    done = mlxgpt("train", "--corpus", "pydocs", *wild, "--eval-every=100", "--out", "run", cwd=tmp_path)
    assert done.returncode == 5 and "start a new run" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs a folder that can't be written")
def test_a_read_only_folder_is_named(home):
    target = "/proc/mlxgpt" if os.geteuid() == 0 else home / "locked"
    if os.geteuid() != 0:
        (home / "locked").mkdir(mode=0o500)
    done = mlxgpt("train", "--corpus", "pydocs", *SMALL, "--out", target, cwd=home)
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(target) in done.stderr


def test_a_full_disk_is_known_before_the_first_step(home, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("may not mount a small tmpfs here")
    try:
        done = mlxgpt("train", "--corpus", "pydocs", *SMALL, "--out", mount / "run", cwd=home)
        assert done.returncode == 6 and "MB free" in done.stderr and "Traceback" not in done.stderr
        target = mount / "c.bin"
        with open(mount / "filler", "wb") as f:
            f.write(b"x" * 200_000)
        done = mlxgpt("convert", home / RUN / "best.safetensors", target, cwd=home)
        assert done.returncode == 6 and "no space left" in done.stderr and not target.exists()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_second_trainer_in_the_folder_is_refused(home, tmp_path):
    shutil.copytree(home / RUN, tmp_path / "run")
    with process("train", "--resume", "run", "--iters", "100000", "--json", cwd=tmp_path) as first:
        assert first.stdout.readline()
        done = mlxgpt("train", "--resume", "run", "--iters", "20", cwd=tmp_path)
        first.kill()
    assert done.returncode == 4 and "another trainer" in done.stderr
