"""Compatibility with mlxgpt 0.1.0: its files are read and resumed, and its commands print what they printed.

The folder fixtures/v0.1.0 holds files that mlxgpt 0.1.0 wrote, and its README.md describes them. They were written on
one CPU. Another CPU may round differently, so numbers that a network computed are compared with a tolerance of 1e-4. A
different BLAS or different kernels change the weights of these runs by 3e-7. Ten updates change them by far more than
the tolerance.
"""

import contextlib
import dataclasses
import inspect
import json
import re
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

import click
import commands
import numpy as np
import pytest
from devices import tolerance
from safetensors import safe_open

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.cli.main import cli
from mlx_gpt.config.presets import parse_set, resolve
from mlx_gpt.config.renames import RENAMED
from mlx_gpt.config.schema import Config
from mlx_gpt.data.vocabularies import open_vocab
from mlx_gpt.errors import UserError
from mlx_gpt.formats import rgpt
from mlx_gpt.train.reports import EvalReport

V010 = commands.ROOT / "tests/fixtures/v0.1.0"
FLAGS = json.loads((V010 / "flags.json").read_text())
TOLERANCE = tolerance("float32 network")
SIZES = {"n_embd": 8, "n_head": 2, "n_layer": 1, "block_size": 16}
SHAPE = [f"--set=model.{name}={size}" for name, size in SIZES.items()]
# Arguments of `mlxgpt train` for the run adamw/, as in make.py of the fixture.
ADAMW = ["--corpus=text.txt", "--batch=2", "--iters=20", "--eval-every=5", "--set=speed.lanes=1", *SHAPE, "--accum=2"]
ADAMW += ["--lr=0.01", "--set=optimizer.name=adamw", "--set=optimizer.schedule=cosine", "--set=train.shuffle=false"]
ADAMW += ["--set=optimizer.warmup_steps=4", "--set=optimizer.ema_decay=0.0"]
# JSON fields that depend on the clock, the machine or the process.
MEASURED = {
    "created", "elapsed", "eta_seconds", "id", "ms_per_iter", "peak_bytes", "peak_memory", "seconds", "state",
    "step_seconds", "system_fingerprint", "tokens_per_second",
}  # fmt: skip


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A copy of the fixture's folder, which tests may change."""
    return shutil.copytree(V010, tmp_path_factory.mktemp("old") / "v0.1.0")


@pytest.fixture(autouse=True)
def inside(old, monkeypatch):
    """Runs every test in the copy, because the paths in its files are relative to it."""
    monkeypatch.chdir(old)


def mlxgpt(*arguments):
    """Runs a command that must succeed, and returns its stdout."""
    done = commands.mlxgpt(*arguments, cwd=Path())
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(text):
    """Parses JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def kept(name):
    """Returns the parsed output of 0.1.0 that json/NAME holds."""
    text = (V010 / "json" / name).read_text()
    return lines(text) if name.endswith(".jsonl") else json.loads(text)


def todays(value):
    """Returns output of 0.1.0 with the current names of settings in strings such as 'model.mlp="swiglu"'.

    The keys of dictionaries keep their old names, because commands still print them.
    """
    if isinstance(value, str):
        name, equals, rest = value.partition("=")
        return RENAMED.get(name, name) + equals + rest
    if isinstance(value, list):
        return [todays(v) for v in value]
    if isinstance(value, dict):
        return {k: todays(v) for k, v in value.items()}
    return value


def assert_still_there(new, was, name="", measured=False):
    """Asserts that every value of old output is in the new output, with the same key, type and value.

    Dictionaries of the new output may have further keys.

    Args:
        new: The new output.
        was: The output of 0.1.0.
        name: Where the values are in the output, for messages.
        measured: Whether the values were measured. If so, only their types are compared.
    """
    if isinstance(was, dict):
        for key, value in was.items():
            assert key in new, f"{name}.{key} is gone"
            assert_still_there(new[key], value, f"{name}.{key}", measured or key in MEASURED)
    elif isinstance(was, list):
        assert len(new) == len(was), f"{name}: {new}, it was {was}"
        for i, (a, b) in enumerate(zip(new, was, strict=True)):
            assert_still_there(a, b, f"{name}[{i}]", measured)
    elif measured:
        assert type(new) is type(was), f"{name}: {new!r}, it was {was!r}"
    elif isinstance(was, float):
        assert new == pytest.approx(was, rel=TOLERANCE, abs=TOLERANCE), name
    else:
        assert (type(new), new) == (type(was), was), name


def assert_close(ours, theirs):
    """Asserts that two dictionaries of tensors have the same names and values within TOLERANCE."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["muon", "adamw", "bpe"])
def test_a_run_folder_is_read_with_its_settings_in_their_old_spelling(folder):
    for name in ("best", "checkpoint"):
        path = Path(folder) / f"{name}.safetensors"
        run, header = mlx_gpt.load(path), store.load(path).header
        added = {"optimizer.newton_schulz": "jordan"}  # run.toml could not have it
        assert run.config == header.config == resolve(f"{folder}/run.toml", overrides=added)
        assert run.model.config.shape() == SIZES and run.tokenizer.vocab_size == header.vocab_size
    assert mlx_gpt.load(folder).header.step == store.load(Path(folder) / "best.safetensors").header.step


def test_a_header_of_version_2_keeps_its_numbers():
    """Old field -> current field: `iteration` -> step, `step` -> num_updates, `lr_cuts` -> num_lr_cuts."""
    header = store.load(Path("muon/checkpoint.safetensors")).header
    assert (header.step, header.num_updates, header.best_step, header.tokens) == (20, 20, 20, 640)
    assert (header.num_lr_cuts, header.bad_evals, header.last_eval, header.averaged) == (0, 0, 20, False)
    assert (header.config.model.ffn, header.config.optimizer.max_lr_cuts) == ("swiglu", 2)
    assert store.load(Path("muon/best.safetensors")).header.averaged
    with safe_open("adamw/checkpoint.safetensors", "numpy") as file:
        written = json.loads(file.metadata()["header"])
    written |= {"iteration": 1, "step": 2, "best_iteration": 3, "lr_cuts": 4, "bad_evals": 5, "last_eval": 6}
    header = store.Header.from_json(json.dumps(written), version=2)
    assert (header.step, header.num_updates, header.best_step) == (1, 2, 3)
    assert (header.num_lr_cuts, header.bad_evals, header.last_eval, header.tokens) == (4, 5, 6, 640)


def test_a_header_of_version_4_does_not_know_the_division_of_its_text():
    header = store.load(Path("muon/checkpoint.safetensors")).header
    assert header.corpus and header.division is None
    written = json.loads(dataclasses.replace(header, division=[2, 3]).to_json())
    assert store.Header.from_json(json.dumps(written)).division == written.pop("division") == [2, 3]
    assert store.Header.from_json(json.dumps(written), version=4) == header


def test_a_header_of_version_5_has_the_only_iteration_of_muon_that_there_was():
    header = store.load(Path("muon/checkpoint.safetensors")).header
    written = json.loads(header.to_json())
    assert written["config"]["optimizer"].pop("newton_schulz") == "jordan"
    assert store.Header.from_json(json.dumps(written), version=5) == header
    assert store.Header.from_json(json.dumps(written)).config.optimizer.newton_schulz == "polar"


def test_a_header_of_version_1_has_the_settings_that_it_did_not_write():
    found, newer = (store.load(Path(f)).header for f in ("version-1/adamw.safetensors", "adamw/checkpoint.safetensors"))
    assert found.config.replace({"speed.lanes": 1}) == newer.config
    assert dataclasses.replace(found, config=newer.config) == newer
    header = mlx_gpt.load("version-1/written.safetensors").header
    optimizer = header.config.optimizer
    assert (optimizer.name, optimizer.schedule, header.config.train.shuffle) == ("adamw", "cosine", False)
    assert (header.step, header.num_updates, header.config.model.shape()) == (20, 20, SIZES)
    found = json.loads(mlxgpt("eval", "version-1/written.safetensors", "--corpus=text.txt", "--json"))
    assert found["loss"] == pytest.approx(header.best_loss, abs=TOLERANCE)


def test_a_preset_and_a_recipe_in_the_old_spelling_are_read():
    config = resolve("preset.toml", "recipe.toml")
    assert (config.model.ffn, config.optimizer.max_lr_cuts, config.optimizer.lr_cut) == ("swiglu", 2, 0.25)
    trained = store.load(Path("muon/checkpoint.safetensors")).header.config
    newer = dataclasses.replace(trained.optimizer, newton_schulz="polar")  # a default that was another one then
    assert (config.model, config.optimizer) == (trained.model, newer)


@pytest.mark.parametrize(
    "was, now, value", [("model.mlp", "model.ffn", "swiglu"), ("model.mlp_dim", "model.ffn_dim", 24),
    ("optimizer.lr_cuts", "optimizer.max_lr_cuts", 3)]
)  # fmt: skip
def test_an_old_spelling_is_the_new_one_and_both_at_once_are_refused(was, now, value, tmp_path):
    expected, preset = resolve(overrides={now: value}), tmp_path / "preset.toml"
    assert expected.get(now) == value != resolve().get(now)
    assert parse_set(f"{was}={value}") == (now, value)
    assert resolve(overrides={was: value}) == resolve().replace({was: value}) == expected
    table, old_name, new_name = *was.split("."), now.split(".")[1]
    assert Config.from_dict({table: {old_name: value}}) == expected
    line = f"[{table}]\n{old_name} = {json.dumps(value)}\n"
    preset.write_text(line)
    assert resolve(str(preset)) == expected
    preset.write_text(f"{line}{new_name} = {json.dumps(value)}\n")
    with pytest.raises(UserError, match=f"{was} .*{now}"):
        resolve(str(preset))
    done = commands.mlxgpt("train", "--plan", "--set", f"{was}={value}", "--set", f"{now}={value}", cwd=tmp_path)
    assert done.returncode == 2 and f"{now} is given twice" in done.stderr


@pytest.mark.parametrize("folder, origin", [("huggingface", "muon/best"), ("mlx-lm", "adamw/best")])
def test_an_exported_folder_is_the_model_that_was_exported(folder, origin):
    ours, theirs = mlx_gpt.load(folder), mlx_gpt.load(f"{origin}.safetensors")
    assert ours.model.config.architecture() == theirs.model.config.architecture()
    assert ours.tokenizer.to_dict() == theirs.tokenizer.to_dict()
    for name, w in theirs.model.weights().items():
        np.testing.assert_array_equal(ours.model.weights()[name], w, err_msg=name)


def test_an_rgpt_file_is_the_checkpoint_it_was_made_from_and_is_written_as_before(tmp_path):
    checkpoint = store.load(Path("adamw/checkpoint.safetensors"))
    for format in ("rgpt0002", "rgpt0003"):
        found = rgpt.read(Path(f"adamw.{format}.bin"), SIZES)
        assert all(np.array_equal(w, checkpoint.weights[name]) for name, w in found.weights.items())
        assert (found.header.step, found.header.num_updates) == (10, 10)
        rgpt.write(tmp_path / format, checkpoint, format)
        assert (tmp_path / format).read_bytes() == Path(f"adamw.{format}.bin").read_bytes()
    assert all(np.array_equal(m, checkpoint.optimizer[name]) for name, m in found.optimizer.items()) and found.optimizer
    assert mlx_gpt.load("adamw.rgpt0002.bin", corpus="text.txt", **SIZES).tokenizer.vocab_size == 53


def test_a_vocabulary_gives_the_same_ids(old):
    text, ids = (old / "text.txt").read_text(), kept("tokenizer-encode.json")["ids"]
    for name in ("bpe/tokenizer.json", "vocab.json"):
        assert open_vocab(Path(name)).encode(text).tolist() == ids
    assert mlx_gpt.load("bpe").tokenizer.encode(text).tolist() == ids
    byte_level = open_vocab(Path("byte-level.tokenizer.json"))
    encoded = byte_level.encode(text + "é☃").tolist()
    assert byte_level.vocab_size == 270 and byte_level.decode(encoded) == text + "é☃"
    assert len(byte_level.encode(text)) < len(text)


# -- runs -----------------------------------------------------------------------------------------------------------


def steps(folder):
    """Returns the steps that are reported in the metrics.jsonl of a run, in order."""
    return [line["step"] for line in lines((Path(folder) / "metrics.jsonl").read_text()) if "grad_norm" in line]


@pytest.mark.parametrize("run", ["adamw", "bpe", "version-1/adamw.safetensors"])
def test_an_interrupted_run_ends_as_the_one_that_was_not(old, tmp_path, monkeypatch, run):
    monkeypatch.chdir(shutil.copytree(old, tmp_path / "copy"))
    # Version 1 of the format had no setting for lanes and used all cores. A checkpoint file without its run folder is
    # resumed in a new folder.
    more, folder = (["--set=speed.lanes=1", "--out=resumed"], "resumed") if Path(run).is_file() else ([], run)
    reports = lines(mlxgpt("train", "--resume", run, *more, "--json"))
    assert [r["step"] for r in reports if r["report"] == "step"] == list(range(11, 21))
    name = Path(run).stem
    half = store.load(V010 / name / "checkpoint.safetensors")
    ours, whole = store.load(Path(folder, "checkpoint.safetensors")), store.load(Path(f"whole/{name}.safetensors"))
    assert_close(ours.weights, whole.weights)
    assert_close(ours.optimizer, whole.optimizer)
    assert max(np.abs(w - whole.weights[k]).max() for k, w in half.weights.items()) > 100 * TOLERANCE
    for field in ("step", "num_updates", "best_step", "bad_evals", "num_lr_cuts", "last_eval", "tokens", "corpus"):
        assert getattr(ours.header, field) == getattr(whole.header, field), field
    assert ours.header.best_loss == pytest.approx(whole.header.best_loss, abs=TOLERANCE)
    if folder == run:  # the resumed run appends to the metrics of the run folder
        before = (V010 / run / "metrics.jsonl").read_text()
        assert Path(run, "metrics.jsonl").read_text().startswith(before) and steps(run) == list(range(1, 21))
        record = json.loads(mlxgpt("compare", run, "--json"))["runs"][0]
        assert (record["tokens"], record["best_step"]) == (whole.header.tokens, whole.header.best_step)


def test_a_run_whose_text_was_fingerprinted_otherwise_is_refused_by_name():
    resume = ["--resume", "version-1/written.safetensors", "--corpus=text.txt", "--iters=30", "--out=absent"]
    done = commands.mlxgpt("train", *resume, cwd=Path())
    assert done.returncode == 4 and "corpus text is not the text of this run" in done.stderr


def test_texts_are_those_of_their_seeds():
    """Rounding can change a draw between two tokens of nearly equal probability, so one of the 15 texts may differ."""
    found = []
    for run in ("muon", "adamw", "bpe"):
        found += lines(mlxgpt("generate", run, "--samples=5", "--seed=0", "--max-tokens=60", "--json"))
    same = [
        {k: new[k] for k in was if k not in MEASURED} == {k: v for k, v in was.items() if k not in MEASURED}
        for new, was in zip(found, kept("texts.jsonl"), strict=True)
    ]
    assert sum(same) >= 14, same


# -- the command line -----------------------------------------------------------------------------------------------


COMMANDS = {
    "inspect": ["inspect", "muon/best.safetensors"],
    "inspect-rgpt": ["inspect", "adamw.rgpt0003.bin", *SHAPE],
    "eval": ["eval", "muon"],
    "generate": ["generate", "muon", "--seed=0", "--max-tokens=40"],
    "plan": ["train", "--plan", *ADAMW],
    "compare": ["compare", "muon", "adamw"],
    "corpus-stats": ["corpus", "stats", "text.txt"],
    "tokenizer-inspect": ["tokenizer", "inspect", "bpe/tokenizer.json"],
    "tokenizer-encode": ["tokenizer", "encode", "text.txt", "--vocab=bpe/tokenizer.json"],
    "tokenizer-decode": ["tokenizer", "decode", "json/tokenizer-encode.json", "--vocab=bpe/tokenizer.json"],
    "push": ["push", "huggingface", "owner/name"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_what_it_printed(name):
    assert_still_there(json.loads(mlxgpt(*COMMANDS[name], "--json")), todays(kept(f"{name}.json")))


def test_the_corpora_are_listed_as_they_were():
    """Other fields depend on the machine: whether a text is stored, and the length of texts that come with Python."""
    now = {row["name"]: row for row in json.loads(mlxgpt("corpus", "list", "--json"))}
    for row in kept("corpus-list.json"):
        assert row.keys() <= now[row["name"]].keys()
        assert [row[k] for k in ("title", "license")] == [now[row["name"]][k] for k in ("title", "license")]


@pytest.mark.skipif(sys.platform != "linux", reason="the fixture was written on a Linux CPU")
def test_doctor_tells_what_it_told():
    """Only the keys are compared, because every value depends on the machine."""
    assert json.loads(mlxgpt("doctor", "--json")).keys() >= kept("doctor.json").keys()


def test_a_training_run_reports_what_it_reported(tmp_path, monkeypatch):
    shutil.copy("text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = [*ADAMW, "--minutes=1", "--sample-every=-1", "--set=train.log_every=1", "--out=train-run"]
    was = kept("train.jsonl")
    assert {r["report"] for r in was} == {"plan", "step", "eval", "sampledue", "save", "stop"}
    now = [report for report in lines(mlxgpt("train", *settings, "--json")) if report["report"] != "start"]
    assert_still_there(now, was)


def test_the_server_answers_what_it_answered():
    was = kept("serve.json")
    writing = {"prompt": "Love", "seed": 1, "max_tokens": 4, "temperature": 0.5}
    said = {"messages": [{"role": "user", "content": "Love"}], "seed": 1, "max_tokens": 4, "temperature": 0.5}
    asked = {
        "GET /v1/models": None,
        "GET /health": None,
        "POST /v1/completions": writing | {"logprobs": 2, "echo": True, "n": 2},
        "POST /v1/chat/completions": said | {"logprobs": True, "top_logprobs": 2},
        "POST /": {"prompt": "Love", "max_tokens": 4},
        "POST /v1/completions (stream)": writing | {"stream": True, "stream_options": {"include_usage": True}},
        "POST /v1/chat/completions (stream)": said | {"stream": True},
        "POST /v1/completions (refused)": {"promt": "Love"},
        "GET /metrics": None,
    }
    assert asked.keys() == was.keys()
    with served("muon") as address:
        now = {name: ask(address + name.split()[1], body) for name, body in asked.items()}
    series = {line.partition(" ")[0] for line in now["GET /metrics"].splitlines()}
    assert series >= set(was.pop("GET /metrics"))
    # The request to POST / has no seed, so its text differs each time.
    assert json.loads(now["POST /"]).keys() >= was.pop("POST /").keys()
    for name, answer in was.items():
        assert_still_there(as_one(parsed(now[name])), as_one(answer), name)


@contextlib.contextmanager
def served(run):
    """A context that runs `mlxgpt serve` in a new process and yields its address."""
    with commands.process("serve", run, "--port=0", "--streams=2", cwd=Path()) as process:
        try:
            yield re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        finally:
            process.kill()


def ask(address, body):
    """Sends a GET request, or a POST request if there is a body. Returns the response body, also that of an error."""
    request = urllib.request.Request(address, body and json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def parsed(answer):
    """Parses a response as JSON. A stream becomes the list of its parsed events, which ends with "[DONE]"."""
    if not answer.startswith("data: "):
        return json.loads(answer)
    events = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def as_one(answer):
    """Merges the events of a stream into one dictionary. Returns other responses unchanged.

    Streams cannot be compared event by event, because the amount of text in an event depends on timing.
    """
    if not isinstance(answer, list):
        return answer
    *events, end = answer
    merged, text = {"end": end}, ""
    for event in events:
        choices = event.get("choices") or [{}]
        text += choices[0].get("text", "") + (choices[0].get("delta", {}).get("content") or "")
        for key, value in {**event, **choices[0], **choices[0].get("delta", {})}.items():
            if value is not None or key not in merged:
                merged[key] = value
    return {k: v for k, v in merged.items() if k not in ("choices", "content", "delta")} | {"text": text}


# -- names ----------------------------------------------------------------------------------------------------------


def parameters(command):
    """Returns the properties of a command's parameters: of options by spelling, and of arguments by index."""
    found, arguments = {}, 0
    with click.Context(command, info_name=command.name) as context:
        for p in command.get_params(context):
            default = p.default if isinstance(p.default, (int, float, str, bool, list, tuple)) else None
            facts = {
                "type": p.type.name,
                "required": p.required,
                "nargs": p.nargs,
                "multiple": p.multiple,
                "choices": list(getattr(p.type, "choices", [])),
                "default": json.loads(json.dumps(default)),
                "is_flag": getattr(p, "is_flag", False),
                "value_if_alone": p.flag_value
                if not getattr(p, "is_flag", False) and isinstance(getattr(p, "flag_value", None), str)
                else None,
                "envvar": p.envvar,
            }
            for spelling in [*p.opts, *p.secondary_opts] if p.param_type_name == "option" else [arguments]:
                found[spelling] = facts
            arguments += p.param_type_name == "argument"
    return found


def command_named(name):
    """`mlxgpt corpus list` -> the click command. Groups may import their commands only when these are resolved."""
    command = cli
    for word in name.split()[1:]:
        with click.Context(command) as context:
            command = command.resolve_command(context, [word])[1]
    return command


# Facts that were changed on purpose. Without --max-choices, a request may now have more texts than the former 16.
CHANGED = {
    ("mlxgpt serve", "--max-choices", "default"),
    ("mlxgpt serve", 0, "nargs"),  # several checkpoints may be given
    ("mlxgpt export", 1, "required"),  # without a destination, it lists what is possible
    ("mlxgpt export", "--to", "default"),  # a name that ends in .gguf is a GGUF file
}


@pytest.mark.parametrize("name", FLAGS["commands"])
def test_every_flag_is_accepted_as_it_was(name):
    now, was, arguments = parameters(command_named(name)), {}, 0
    for p in FLAGS["commands"][name]:
        for spelling in p["spellings"] if p["kind"] == "option" else [arguments]:
            was[spelling] = p
        arguments += p["kind"] == "argument"
    assert was.keys() <= now.keys()
    for spelling, p in was.items():
        for fact in ("type", "nargs", "multiple", "required", "default", "is_flag", "value_if_alone", "envvar"):
            same = now[spelling][fact] == p.get(fact, now[spelling][fact])
            assert same or (name, spelling, fact) in CHANGED, (spelling, fact)
        assert set(now[spelling]["choices"]) >= set(p.get("choices", [])), spelling
    assert not [spelling for spelling in now.keys() - was.keys() if now[spelling]["required"]]


def test_public_names_are_called_as_before():
    was = FLAGS["python"]
    assert set(was["all"]) <= set(mlx_gpt.__all__)
    for name, parameters in was["signatures"].items():
        now = inspect.signature(getattr(mlx_gpt, name)).parameters
        by_place = [k for k, p in now.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        places = [k for k, p in parameters.items() if p["kind"] == "POSITIONAL_OR_KEYWORD"]
        assert by_place[: len(places)] == places, name
        for key, p in now.items():
            required = p.default is p.empty
            if key in parameters:
                default = None if required else json.loads(json.dumps(p.default))
                assert (required, default) == (parameters[key]["required"], parameters[key]["default"]), (name, key)
            else:
                assert not required, (name, key)
        assert parameters.keys() <= now.keys(), name


def test_old_names_of_python_objects_give_the_new_ones():
    run = mlx_gpt.load("muon")
    assert run.header.iteration == run.header.step == 20
    model = run.config.model
    assert (model.mlp, model.mlp_dim) == (model.ffn, model.ffn_width) == ("swiglu", 24)
    fields = dict.fromkeys((f.name for f in dataclasses.fields(EvalReport)), 0)
    assert EvalReport(**fields | {"num_lr_cuts": 3}).lr_cuts == 3
