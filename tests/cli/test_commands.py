"""The commands, as a user types them."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import mlxgpt
from constants import COMMANDS, ROOT, SMALL, TINY_SHAPE
from devices import tolerance
from test_compatibility import assert_still_there, kept, todays

import mlx_gpt
from mlx_gpt import bench, data
from mlx_gpt.bench import race
from mlx_gpt.checkpoint import store
from mlx_gpt.cli import main
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.encoding import encode
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.data.vocabularies import open_vocab
from mlx_gpt.watch.metrics import read_metrics


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


def test_one_learning_rate_scales_the_updates_of_all_weights(home, tmp_path):
    """The first update after a resume is a hundred times smaller at a hundredth of the rate, Muon's matrices included.

    The rates in force are printed and recorded.
    """
    path, sizes = home / "runs/custom-pydocs/best.safetensors", {}
    step = store.load(path).header.step
    for rate in ("1e-3", "1e-5"):
        command = ["train", "--resume", path, "--lr", rate, "--min-lr", rate, f"--iters={step + 1}", "--out", rate]
        done = mlxgpt(*command, "--set=train.log_every=1", "--set=optimizer.warmup_steps=0", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"LR: {float(rate):.6f} (normuon {float(rate) * 20 / 3:.6f})" in done.stdout
        [update] = [r for r in read_metrics(tmp_path / rate / "metrics.jsonl") if r["report"] == "step"]
        assert update["rule_lrs"] == pytest.approx({"adamw": float(rate), "normuon": float(rate) * 20 / 3})
        before, after = (store.load(p).as_trained().weights for p in (path, tmp_path / rate / "checkpoint.safetensors"))
        sizes[rate] = {name: np.linalg.norm(w - before[name]) for name, w in after.items()}
    for name, size in sizes["1e-3"].items():
        assert size == pytest.approx(100 * sizes["1e-5"][name], rel=0.02) and size > 0, name


def test_a_plan_of_a_complete_run_says_so(home):
    done = mlxgpt("train", "2", "--plan", "--resume", "runs/custom-pydocs", cwd=home)
    assert done.returncode == 0 and "already at step 12 of 2, nothing to do" in done.stderr and not done.stdout


def test_runs_without_an_evaluation_are_left_out_of_a_comparison(home, tmp_path):
    (tmp_path / "empty").mkdir()
    run = home / "runs/custom-pydocs"
    done = mlxgpt("compare", run, tmp_path / "empty", cwd=tmp_path)
    assert done.returncode == 0 and "empty: no metrics.jsonl" in done.stderr and "best loss" in done.stdout
    assert mlxgpt("compare", tmp_path / "empty", cwd=tmp_path).returncode == 2


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


def test_generate_takes_the_options_of_sampling(home):
    run = mlx_gpt.load(home / "runs/custom-pydocs/best.safetensors")
    [letter, end] = run.tokenizer.encode("ez").tolist()
    how = {"min_p": 0.01, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": -0.2}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    options += [f"--logit-bias={letter}=-100", "--logit-bias=0=-2.5", f"--stop-token-id={end}"]
    done = mlxgpt("generate", *options, "--max-tokens=40", "--seed=3", "--json", cwd=home)
    how |= {"logit_bias": {letter: -100, 0: -2.5}, "stop_token_ids": [end]}
    assert json.loads(done.stdout)["completion"] == "".join(mlx_gpt.generate(run, max_tokens=40, seed=3, **how))


def test_eval_and_inspect_tell_what_the_run_told(home):
    best = home / "runs/custom-pydocs/best.safetensors"
    facts = json.loads(mlxgpt("inspect", best, "--json", cwd=home).stdout)
    found = json.loads(mlxgpt("eval", best, "--json", cwd=home).stdout)
    assert found.keys() >= {"loss", "ppl", "bits_per_byte", "tokens"}
    assert found["loss"] == pytest.approx(facts["best_loss"], abs=tolerance("float32 loss"))
    assert facts["n_embd"] == 32 and facts["iteration"] == facts["step"] == 12
    table = mlxgpt("inspect", best, cwd=home).stdout.split("\ntensors")[0]
    assert re.search(r"^step +12$", table, re.M) and "iteration" not in table
    assert facts["tensors"]["wpe.weight"] == [64, 32]
    assert (facts["decoding_bytes_per_token"], facts["decoding_bytes_per_sequence"]) == (2 * 2 * 32 * 4, 0)
    other = json.loads(mlxgpt("eval", best, "--corpus", home / "text.txt", "--split", "all", "--json", cwd=home).stdout)
    assert other["tokens"] == 41 * 60 - 1 and other["loss"] != found["loss"]


def test_token_ids_of_another_program_are_imported_described_and_trained_on(tmp_path):
    tokenizer = ("tokenizer", "train", "--corpus", "code-patterns:40", "--bpe", 300, "--byte-level", "tokenizer.json")
    assert mlxgpt(*tokenizer, cwd=tmp_path).returncode == 0
    text = open_corpus(["code-patterns:40"])
    tokens = encode(text, open_vocab(tmp_path / "tokenizer.json"), print)
    tokens.ids.host.astype("<u4").tofile(tmp_path / "a.bin")
    vocab = ("--vocab", "tokenizer.json")
    wrong = mlxgpt("corpus", "import", "a.bin", "--dtype", "uint16", *vocab, cwd=tmp_path)
    assert wrong.returncode == 2 and "give --dtype uint32" in wrong.stderr
    done = mlxgpt("corpus", "import", "a.bin", "--dtype", "uint32", *vocab, "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"file": "a.tokens", "tokens": len(tokens), "documents": 40}
    ours, theirs = (
        json.loads(mlxgpt("corpus", "stats", name, *vocab, "--json", cwd=tmp_path).stdout)
        for name in ("a.tokens", "code-patterns:40")
    )
    assert ours | {"name": 0} == theirs | {"name": 0}
    shown = mlxgpt("corpus", "stats", "a.tokens", *vocab, cwd=tmp_path).stdout
    assert "exact duplicates: 0 documents" in shown and "ids that never occur" in shown
    run = mlxgpt("train", "--corpus", "a.tokens", *vocab, *SMALL, "--out=run", cwd=tmp_path)
    same = mlxgpt("train", "--corpus", "code-patterns:40", *vocab, *SMALL, "--out=same", cwd=tmp_path)
    assert run.returncode == same.returncode == 0, run.stderr
    weights = [store.load(tmp_path / name / "checkpoint.safetensors").weights for name in ("run", "same")]
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
    resumed = mlxgpt("train", "13", "--resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.parametrize("command, words", [("doctor", "matmul_gflops"), ("corpus list", "public domain")])
def test_reports_come_in_words_too(command, words, tmp_path):
    """test_compatibility.py reads their JSON."""
    assert words in mlxgpt(*command.split(), cwd=tmp_path).stdout


def test_plan_and_bench_measure_and_leave_nothing(tmp_path):
    plan = json.loads(mlxgpt("train", "--corpus", "pydocs", *SMALL, "--plan", "--json", cwd=tmp_path).stdout)
    assert plan["tokens"] == 12 * 4 * 64 and plan["parameters"] > 20_000 and plan["eta_seconds"] > 0
    assert (plan["decoding_bytes_per_token"], plan["decoding_bytes_per_sequence"]) == (2 * 2 * 32 * 4, 0)
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
    assert "resuming at step 12 of 15" in more.stdout
    assert more.stderr == "train.iters is now 15, it was 12\n"
    lines = map(json.loads, (tmp_path / "runs/custom-pydocs-2/metrics.jsonl").read_text().splitlines())
    curve = [line["step"] for line in lines if line["report"] in ("step", "eval")]
    assert curve == [*range(1, 7), 6, *range(7, 13), 12, 13, 14, 15, 15]


def test_iterations_are_an_argument_and_train_txt_is_the_text(tmp_path, vectors):
    """randyGPT's habits: the number of iterations alone, and train.txt in the current folder, for new runs and old."""
    small = [word for word in SMALL if "iters" not in word] + ["--set=data.val_fraction=0.1"]
    small.remove("--set=data.val_fraction=0.002")
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    for folder in (elsewhere, here):
        folder.mkdir()
        (folder / "other.txt").write_text("to be or not to be\n" * 60)
    (here / "train.txt").write_text("".join(map(chr, range(48, 48 + 65))) * 12)
    done = mlxgpt("train", "2", *small, cwd=here)
    assert done.returncode == 0 and "training on train.txt; --corpus names another text\n" in done.stderr, done.stderr
    assert "(2 iters)" in done.stdout and (here / "runs/custom-train").is_dir()
    done = mlxgpt("train", "3", "--resume", cwd=here)
    assert done.returncode == 0 and "training on" not in done.stderr and "(1 iters)" in done.stdout
    done = mlxgpt("train", "1", *small, "--corpus=other.txt", cwd=here)
    assert done.returncode == 0 and "train.txt" not in done.stderr + done.stdout
    file = ["--resume", vectors / "tiny.rgpt0003.bin", *small, "--out=run"]
    done = mlxgpt("train", "7", *file, cwd=elsewhere)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "--corpus" in done.stderr
    done = mlxgpt("train", "7", *file, cwd=here)
    assert done.returncode == 0 and "training on train.txt" in done.stderr and "(1 iters)" in done.stdout, done.stderr
    done = mlxgpt("train", "6", *file[:-1], "--out=run2", cwd=here)
    assert "tiny.rgpt0003.bin: already at step 6 of 6" in done.stderr


def test_an_rgpt_run_goes_on_with_its_moments(vectors, tmp_path, shakespeare):
    """From golden file to safetensors, on with training, and back to RGPT."""
    shape = [f"--set=model.{k}={v}" for k, v in TINY_SHAPE.items()]
    source = vectors / "tiny.rgpt0003.bin"
    small = [*shape, "--batch=2", "--iters=8", "--sample-every=0", "--set=train.eval_windows=4"]
    done = mlxgpt("train", "--resume", source, "--corpus", shakespeare, *small, "--out", "r", cwd=tmp_path)
    assert done.returncode == 0 and "resuming at step 6 of 8" in done.stdout, done.stderr
    assert mlxgpt("convert", "r/checkpoint.safetensors", "back.bin", cwd=tmp_path).returncode == 0
    facts = json.loads(mlxgpt("inspect", "back.bin", *shape, "--json", cwd=tmp_path).stdout)
    assert (facts["format"], facts["iteration"], facts["step"]) == ("RGPT0003", 8, 8)
    weights_only = mlxgpt(
        "train", "--resume", vectors / "tiny.rgpt0002.bin", "--corpus", shakespeare, *small, "--out", "s", cwd=tmp_path
    )
    assert "no optimizer state" in weights_only.stderr and weights_only.returncode == 0
    tuned = mlxgpt(
        "train", "--fine-tune", "r/best.safetensors", "--corpus", shakespeare, *small[-4:], "--out", "t", cwd=tmp_path
    )
    assert tuned.returncode == 0 and "Total time" in tuned.stdout, tuned.stderr
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
    """It is learned once, saved in the run folder and the checkpoint, and used to resume, generate and train again."""
    (tmp_path / "text.txt").write_text("\n".join(open_corpus(["pydocs"]).documents)[:50_000])
    small = [*SMALL, "--corpus=text.txt"]
    done = mlxgpt("train", *small, *mode, "--out=run", cwd=tmp_path)
    assert done.returncode == 0 and f"trained a vocabulary of {mode[1]} in" in done.stderr
    vocab = (tmp_path / "run/tokenizer.json").read_bytes()
    done = mlxgpt("train", "--resume", "run", "--iters=14", cwd=tmp_path)
    assert done.returncode == 0 and "vocabulary" not in done.stderr
    assert (tmp_path / "run/tokenizer.json").read_bytes() == vocab
    assert (tmp_path / "run/vocab.json").exists() == ("--byte-level" not in mode)
    done = mlxgpt(
        "generate", "run/best.safetensors", "--prompt=The", "--temp=0", "--max-tokens=9", "--json", cwd=tmp_path
    )
    assert done.returncode == 0 and json.loads(done.stdout)["tokens"] == 9
    done = mlxgpt("train", *small, "--vocab=run/tokenizer.json", "--out=other", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "other/tokenizer.json").read_bytes() == vocab
    facts = json.loads(mlxgpt("eval", "other/best.safetensors", "--json", cwd=tmp_path).stdout)
    assert 0 < facts["bits_per_byte"] < facts["loss"] / 0.6931
    done = mlxgpt("train", "--resume", "run", "--iters=20", "--bpe=500", cwd=tmp_path)
    assert done.returncode == 4 and "the tokenizer of a run cannot change" in done.stderr


def test_randygpts_vocabulary_is_trained_and_lies_beside_the_checkpoint(vectors, tmp_path, shakespeare):
    """By both of its recipes, by the tokenizer command, and not by default."""
    (text,) = open_corpus([shakespeare]).documents
    (tmp_path / "text.txt").write_text(text[:200_000])
    expected, found = (vectors / "bpe-train-600.vocab.json").read_bytes(), []
    for i, recipe in enumerate((["--recipe=randygpt"], ["--recipe=randygpt-0.9.5"], [])):
        small = [
            *SMALL[:4],
            "--iters=1",
            "--batch=2",
            "--set=train.eval_windows=2",
            "--sample-every=0",
            f"--out=run{i}",
        ]
        done = mlxgpt("train", "--corpus=text.txt", "--bpe=600", *small, *recipe, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append((tmp_path / f"run{i}/vocab.json").read_bytes() == expected)
    assert found == [True, True, False]
    trained = ["tokenizer", "train", "--corpus=text.txt", "--bpe=600"]
    for dst, rule in (("vocab-a.json", ["--rule=randygpt"]), ("vocab-b.json", [])):
        assert mlxgpt(*trained, dst, *rule, cwd=tmp_path).returncode == 0
    assert (tmp_path / "vocab-a.json").read_bytes() == expected
    assert (tmp_path / "vocab-b.json").read_bytes() == (tmp_path / "run2/vocab.json").read_bytes()
    done = mlxgpt(*trained, "c.json", "--rule=randygpt", "--byte-level", cwd=tmp_path)
    assert done.returncode == 2 and "--rule randygpt" in done.stderr and "give one of them" in done.stderr


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


def test_the_tokenizer_json_of_a_character_model_is_converted_to_itself(tmp_path):
    text = data.tokenizer_json(CharTokenizer("\nabc"))
    (tmp_path / "tokenizer.json").write_text(text)
    done = mlxgpt("tokenizer", "convert", "tokenizer.json", "again.json", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "again.json").read_text() == text
    done = mlxgpt("tokenizer", "convert", "tokenizer.json", "vocab.json", cwd=tmp_path)
    assert done.returncode == 2 and "vocab.json cannot hold a vocabulary of kind char" in done.stderr
