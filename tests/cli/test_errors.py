"""Mistakes of a user: one line and an exit code."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import mlxgpt, process
from constants import SMALL

from mlx_gpt import device
from mlx_gpt.errors import Disagreement
from mlx_gpt.train.trainer import Trainer

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
    (f"inspect {RUN}/best.safetensors --preset train.toml", 3, "train.toml no table [model]"),
    (f"generate {RUN}/best.safetensors --preset train.toml", 3, "train.toml no table [model]"),
    (f"inspect {RUN}/best.safetensors --preset unknown.toml", 2, "n_emdb n_embd"),
    (f"generate {RUN}/best.safetensors --preset unknown.toml", 2, "n_emdb n_embd"),
    ("train --preset unknown.toml", 2, "unknown.toml: n_emdb n_embd"),
    ("train --recipe unknown.toml", 2, "unknown.toml: n_emdb n_embd"),
    ("train --preset wrong.toml", 2, "wrong.toml: train.iters='many' whole number"),
    ("train --preset deep.toml", 3, "deep.toml nested 64"),
    ("train --vocab deep.toml", 3, "deep.toml nested 64"),
    ("train --vocab /dev/zero", 3, "/dev/zero special"),
    (f"train --set train.iters={'[' * 1000}", 2, "train.iters number"),
    (f"train --set train.iters={'1' * 5000}", 2, "train.iters number"),
    ("train --preset folder", 2, "unknown preset TOML folder"),
    (f"train --plan --iters 1 --out {RUN}", 2, f"{RUN} already holds --resume --out"),
    (f"train --preset {RUN}", 2, f"{RUN} run folder {RUN}/run.toml"),
    ("train --preset LLAMA-S", 2, "LLAMA-S mean llama-s?"),
    ("train --corpus shakespear", 2, "'shakespear' mean shakespeare?"),
    ("train --corpus=", 2, "data.corpus=('',) not empty"),
    ("train --out=", 2, "--out empty"),
    ("train --resume=", 2, "--resume is empty"),
    ("train --resume --out absent", 2, "--out absent no run there"),
    ("train --iters 0", 2, "train.iters=0 from"),
    ("train --iters many", 2, "--iters many"),
    ("train many", 2, "many number 1000 --corpus"),
    ("train 0", 2, "train.iters=0 from"),
    ("train 5 --iters 6", 2, "5 --iters 6 one of them"),
    ("train 5 --set train.iters=6", 2, "train.iters twice"),
    ("train 5 6", 2, "unexpected 6"),
    ("train --join=", 2, "--join '' HOST:PORT:TOKEN"),
    ("train --join localhost", 2, "--join 'localhost' HOST:PORT:TOKEN"),
    ("train --join a:1:b --set model.n_head=3", 2, "--join also --set leave out"),
    ("train --join a:1:b 100", 2, "--join also ITERS leave out"),
    ("train --resume 500", 2, "500 no such mlxgpt train 500 --resume"),
    ("train --set data.bpe_rule=words", 2, "bpe_rule='words' lines randygpt"),
    ("train --iters 5 --set train.iters=6", 2, "train.iters twice"),
    ("train --minutes -1", 2, "train.minutes=-1"),
    ("train --tokens 5 --iters 5", 2, "train.iters=5 train.tokens=5 one of them"),
    ("train 5 --set train.tokens=5", 2, "train.iters=5 train.tokens=5 one of them"),
    ("train --tokens 5 --set train.tokens=5", 2, "train.tokens twice"),
    *(
        (f"train --tokens {n}", 2, f"--tokens '{n}' 500000 5e5 0.5M")
        for n in ("0", "-5", "M", "0.5", "nan", "1e99999999")
    ),
    ("train --tokens 1e15 --batch 1", 2, "train.tokens=1000000000000000 fewer --batch"),
    ("train --set train.tokens=-1", 2, "train.tokens=-1 from 0"),
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
    ("generate --min-p 2", 2, "min_p=2"),
    ("generate --repetition-penalty 0", 2, "repetition_penalty=0"),
    ("generate --frequency-penalty 3", 2, "frequency_penalty=3"),
    ("generate --presence-penalty -3", 2, "presence_penalty=-3"),
    ("generate --logit-bias 5", 2, "--logit-bias '5' ID=VALUE"),
    ("generate --logit-bias a=1", 2, "--logit-bias 'a=1' ID=VALUE"),
    ("generate --logit-bias 5=101", 2, "logit_bias={5: -100 100"),
    ("generate --logit-bias 99999=1", 2, "logit_bias 99999 vocabulary"),
    ("generate --stop-token-id -1", 2, "stop_token_ids -1 vocabulary"),
    ("generate --max-tokens -1", 2, "max_tokens=-1"),
    ("generate --prompt жук", 2, "'ж' U+0436"),
    ("generate --set train.iters=5", 2, "train.iters model.n_head"),
    (f"generate {RUN}/best.safetensors --preset model-xs", 4, "best.safetensors network n_embd 116 32"),
    (
        f"generate {RUN}/best.safetensors --corpus other.txt",
        4,
        "best.safetensors tokenizer char corpus other leave out",
    ),
    (f"eval {RUN}/best.safetensors --set model.n_layer=3", 4, "best.safetensors n_layer 3 2"),
    (f"convert {RUN}/best.safetensors x.bin --set model.n_layer=3", 4, "best.safetensors n_layer 3 2"),
    ("eval absent.safetensors", 2, "absent.safetensors no such"),
    ("eval --corpus absent.txt", 2, "absent.txt"),
    ("inspect text.txt", 3, "text.txt neither"),
    (f"convert {RUN}/best.safetensors text.txt", 2, "text.txt already --force"),
    (f"convert {RUN}/best.safetensors absent/x.bin", 2, "absent/x.bin no folder absent; create"),
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
    ("train --corpus code-patterns", 2, "code-patterns 1,000,000 code-patterns:500 weight"),
    ("train --corpus code-patterns-rust:0", 2, "code-patterns-rust:0 number of documents"),
    ("train --corpus pydocs --set data.fim_rate=1.5", 2, "data.fim_rate 1.5"),
    (f"generate {RUN}/best.safetensors --suffix b", 2, "suffix special tokens fill-in-the-middle data.fim_rate"),
    (f"eval {RUN}/best.safetensors --top-p 0.5", 2, "--top-p --text"),
    (f"eval {RUN}/best.safetensors --text --split all", 2, "--split --text"),
    ("corpus import text.txt --vocab vocab.json", 2, "--dtype"),
    ("corpus import text.txt --dtype uint16 --vocab vocab.json", 3, "text.txt position 0 vocabulary of 4 --vocab"),
    ("corpus import empty.txt --dtype uint32 --vocab vocab.json", 3, "empty.txt empty"),
    ("corpus import absent.bin --dtype uint32 --vocab vocab.json", 2, "absent.bin no such file"),
    ("train --corpus *.csv", 2, "*.csv matches no file"),
    ("train --set data.unknown=keep", 2, "keep drop refuse"),
    (f"train --resume {RUN} --bpe 300 --iters 20", 4, "data.tokenizer bpe char new run"),
    ("tokenizer encode text.txt", 2, "--vocab"),
    ("tokenizer encode absent.txt --vocab absent.json", 2, "absent.json no such"),
    ("tokenizer encode /dev/zero --vocab absent.json", 2, "absent.json no such"),
    ("tokenizer encode /dev/zero --vocab vocab.json", 3, "/dev/zero special"),
    ("tokenizer encode folder --vocab vocab.json", 3, "folder special"),
    ("tokenizer encode binary.bin --vocab vocab.json", 3, "binary.bin byte 128 UTF-8"),
    ("tokenizer encode absent.txt --vocab vocab.json", 2, "absent.txt no such"),
    ("tokenizer decode /dev/zero --vocab vocab.json", 3, "/dev/zero special"),
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
    ("train --set optimizer.name=sgd", 2, "sgd adamw muon normuon lion"),
    ("train --set optimizer.schedule=step", 2, "step cosine linear wsd"),
    ("train --set optimizer.ema_decay=1", 2, "ema_decay=1 0.999999"),
    ("train 10 --lr 1e-3 --lr 1e-4", 2, "--lr is given twice; give it once"),
    ("generate --seed 1 --seed 2", 2, "--seed is given twice; give it once"),
    ("train --set optimizer.muon_lr_scale=0", 2, "muon_lr_scale=0"),
    ("train --set optimizer.muon_learning_rate=0.1", 2, "give that, such as 6.67"),
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
    wild = [*SMALL, "--lr=10", "--set=optimizer.warmup_steps=0", "--set=optimizer.clip_mode=none"]
    wild = [option for option in wild if option not in ("--iters=12", "--eval-every=6")]
    done = mlxgpt("train", "200", "--corpus", "pydocs", *wild, "--eval-every=100", "--out", "run", cwd=tmp_path)
    assert done.returncode == 5 and "start a new run" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs a folder that can't be written")
def test_a_gpu_that_was_stopped_is_explained_in_one_line(tmp_path, monkeypatch):
    def stopped(self, require_folder):
        raise RuntimeError("[METAL] Command buffer execution failed: Impacting Interactivity (0000000e)")
        yield

    monkeypatch.setattr(Trainer, "run", stopped)
    done = mlxgpt("train", *SMALL, cwd=tmp_path)
    assert done.returncode == 7
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error"))
    assert all(word in line for word in ("display", "--batch", "speed.ops_per_buffer"))


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


def test_a_run_that_loses_its_folder_ends_with_6_and_says_how_to_continue(tmp_path, monkeypatch):
    def losing(self, require_folder):
        for report in run(self, require_folder):
            if report.step == 2:
                shutil.rmtree(self.folder, ignore_errors=True)
            yield report

    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", losing)
    done = mlxgpt("train", "--corpus", "pydocs", *SMALL, "--out", "runs/run", cwd=tmp_path)
    monkeypatch.undo()
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error"))
    assert done.returncode == 6 and "runs/run: is no longer the folder of this run" in line
    path = Path(re.search(r"continue with --resume (\S+);", line)[1])
    assert path.parent.parent == tmp_path / "runs"
    done = mlxgpt("train", "--resume", path, "--iters", "14", cwd=tmp_path)
    assert done.returncode == 0 and "saved " + str(path) + " @14" in done.stdout


def test_a_second_trainer_in_the_folder_is_refused(home, tmp_path):
    shutil.copytree(home / RUN, tmp_path / "run")
    with process("train", "--resume", "run", "--iters", "100000", "--json", cwd=tmp_path) as first:
        assert first.stdout.readline()
        done = mlxgpt("train", "--resume", "run", "--iters", "20", cwd=tmp_path)
        first.kill()
    assert done.returncode == 4 and "another trainer" in done.stderr


def test_a_fine_tuned_model_keeps_its_tokenizer(home, tmp_path):
    for option in (["--bpe", "300"], ["--vocab", home / "text.txt"], ["--set=data.tokenizer=bpe"]):
        done = mlxgpt("train", "--fine-tune", home / RUN, "--corpus", home / "text.txt", *option, cwd=tmp_path)
        assert done.returncode == 4 and "tokenizer" in done.stderr and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["generate", "inspect", "corpus list"])
def test_a_pipe_that_is_closed_ends_a_command_with_141(home, command):
    arguments = [*command.split(), *([str(home / RUN)] if command != "corpus list" else [])]
    with process(*arguments, cwd=home) as running:
        running.stdout.close()
        running.stderr.read()
    assert running.returncode == 141


def test_a_failure_of_our_own_says_that_it_is_a_defect_and_what_to_report(tmp_path, monkeypatch):
    def fail():
        raise Disagreement("bench: PyTorch has other losses")

    monkeypatch.setattr(device, "device_report", fail)
    done = mlxgpt("doctor", cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and not done.stdout
    assert line.startswith("internal error: bench: PyTorch has other losses; ")
    assert "defect of mlxgpt" in line and "report" in line and "mlxgpt doctor" in line


def test_an_empty_preset_is_no_preset(tmp_path):
    done = mlxgpt("train", "--preset", "", cwd=tmp_path)
    assert done.returncode == 2 and "preset" in done.stderr
