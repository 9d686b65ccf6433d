"""The table TARGETS: a good file of each format that mlxgpt reads, and how it is read.

A new format is a new row. tests/torture/test_files.py changes each file, and breaks each read.
"""

import contextlib
import dataclasses
import gzip
import json
import struct
import zlib
from collections import Counter
from unittest import mock

import numpy as np
import safetensors.numpy
from checkpoints import MODEL, checkpoint
from commands import mlxgpt
from hostile import Target
from mutations import mutated, mutated_json, mutated_lines, mutated_value
from networks import LLAMA
from reporting import evaluation, step

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.cli.pipeline import Stage
from mlx_gpt.code.history import comparable
from mlx_gpt.code.problems import read_problems
from mlx_gpt.config.presets import preset_network, resolve
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.data import idfiles, tokenfile
from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer, tokenizer_json
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.encoding import import_ids
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.data.vocabularies import open_vocab
from mlx_gpt.errors import UserError
from mlx_gpt.formats import FORMATS, nanochat, rgpt
from mlx_gpt.formats.huggingface.folder import require_whole
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.rl.prompts import read_prompts
from mlx_gpt.run.listing import list_runs
from mlx_gpt.run.loading import read_checkpoint
from mlx_gpt.watch.compare import NotEvaluated, comparison, differences, read_record, table, thresholds
from mlx_gpt.watch.metrics import MetricsFile, read_metrics
from mlx_gpt.watch.runs import Runs

TEXT = "the quick brown fox\njumps over the lazy dog\n" * 20
KNOWN = CharTokenizer("abcdefghijklmnop")


def of_checkpoint(folder, name="a.safetensors"):
    store.save(folder / name, checkpoint())
    return Target(folder / name, lambda: mlx_gpt.load(folder / name))


def of_header(folder):
    """The changed header has the right hash, as one that was made to do harm would have."""
    path, good = folder / "a.safetensors", checkpoint()
    store.save(path, good)
    tensors = good.weights | {store.OPTIMIZER + k: t for k, t in good.optimizer.items()}

    def signed(_, draw):
        header = json.dumps(mutated_value(json.loads(good.header.to_json()), draw))
        version = draw.choice([str(store.FORMAT_VERSION)] * 5 + ["1", "2", "3", "4", "6", ""])
        facts = {"format": store.FORMAT, "format_version": version, "header": header}
        return safetensors.numpy.save(tensors, facts | {"sha256": store.digest(header, tensors)})

    return Target(path, lambda: mlx_gpt.load(path), signed)


def of_state_dict(folder):
    path = folder / "state.safetensors"
    safetensors.numpy.save_file(checkpoint().weights, path)
    return Target(path, lambda: read_checkpoint(path, network={"n_head": 2}))


def of_rgpt(folder, name):
    rgpt.write(folder / "a.bin", checkpoint(), name)
    return Target(folder / "a.bin", lambda: read_checkpoint(folder / "a.bin", network={"n_head": 2, **MODEL.shape()}))


def of_vocabulary(folder, name, text, mutate=mutated_json):
    (folder / name).write_text(text)

    def use():
        known = open_vocab(folder / name)
        known.decode(known.encode("the quick\nfox \U0001d11e", Counter()).tolist())
        known.token_bytes()

    return Target(folder / name, use, mutate)


def of_trained(folder, kind):
    known = kind.train([TEXT], 300, set(TEXT))
    return of_vocabulary(folder, "tokenizer.json", tokenizer_json(known))


def of_vocab_json(folder):
    return of_vocabulary(folder, "vocab.json", BPETokenizer.train([TEXT], 60, set(TEXT)).to_vocab_json())


def of_metrics(folder):
    path = folder / "metrics.jsonl"
    lines = MetricsFile(path)
    for n in range(1, 20):
        lines.add(step(n))
        if n % 5 == 0:
            lines.add(evaluation(n))
    lines.close()
    (folder / "run.toml").write_text(resolve().to_toml())

    def use():
        try:
            records = [read_record(folder)] * 2
            table(records, thresholds(records))
            json.dumps([differences(records), records[0].facts()], allow_nan=False)
        finally:
            MetricsFile(path, 10).close()
            read_metrics(path)

    return Target(path, use, mutated_lines)


def of_settings(folder):
    of_metrics(folder)
    return Target(folder / "run.toml", lambda: read_record(folder))


def of_preset(folder):
    path = folder / "own.toml"
    path.write_text('[model]\nn_embd = 192\nn_head = 6\nmixers = ["attention"]\n[train]\nbatch_size = 32\n"seed" = 1\n')

    def use():
        preset_network(str(path))
        resolve(str(path), str(path), {"train.iters": 5})

    return Target(path, use)


def of_export(folder, name, mutate, format="huggingface"):
    """One file of an exported folder."""
    known = CharTokenizer("abc")
    FORMATS[format].write(checkpoint(tokenizer=known.to_dict()), folder / "out")

    def use():
        require_whole(folder / "out")
        mlx_gpt.load(folder / "out")

    return Target(folder / "out" / name, use, mutate)


def network(settings, **shape):
    """A checkpoint of a network whose weights are 1, with the tokenizer of "abc"."""
    model, good = ModelConfig(**shape, **settings), checkpoint(tokenizer=CharTokenizer("abc").to_dict())
    header = dataclasses.replace(good.header, config=Config(model=model))
    weights = {k: np.ones(shape, np.float32) for k, shape in shapes_of(model, header.vocab_size).items()}
    return Checkpoint(header=header, weights=weights, optimizer={})


def of_llama(folder, format, name="", mutate=mutated):
    """A file of Llama's network: the file `name` of a folder, or a file of a format that is no folder."""
    FORMATS[format].write(network(LLAMA, **MODEL.shape()), folder / "out")
    return Target(folder / "out" / name, lambda: mlx_gpt.load(folder / "out"), mutate)


def of_text(folder, name):
    lines = b"".join(json.dumps({"text": f"line {i} \u00e9"}).encode() + b"\n" for i in range(200))
    data = lines if "jsonl" in name else (TEXT + "<|eos|>\u00e9").encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    def use():
        corpus = open_corpus([str(folder / name)])
        assert corpus.fingerprint and all(corpus.texts())

    mutate = mutated_lines if name.endswith(".jsonl") else mutated
    return Target(folder / name, use, mutate)


def of_tensors(folder):
    """Tensors with other values, shapes, types and names. The hash is the right one."""
    path, good = folder / "a.safetensors", checkpoint()
    store.save(path, good)
    tensors = good.weights | {store.OPTIMIZER + k: t for k, t in good.optimizer.items()}
    values = [np.nan, np.inf, -np.inf, 3e38, -0.0, 1e-45]

    def signed(_, draw):
        found = {name: t.copy() for name, t in tensors.items()}
        for name in draw.sample(sorted(found), draw.randint(1, 3)):
            match draw.randrange(6):
                case 0:
                    del found[name]
                case 1:
                    found[draw.choice(["", "x", "optimizer.ema." + name, "layers.9." + name])] = found.pop(name)
                case 2:
                    found[name] = found[name].reshape(
                        draw.choice([(-1,), (1, -1), (-1, 1, 1), (*found[name].shape, 1)])
                    )
                case 3:
                    found[name] = found[name][:0]
                case 4:
                    found[name] = found[name].astype(draw.choice([np.float16, np.uint8, np.uint32]))
                case 5:
                    found[name].reshape(-1)[draw.randrange(found[name].size)] = draw.choice(values)
        header = good.header.to_json()
        facts = {"format": store.FORMAT, "format_version": str(store.FORMAT_VERSION), "header": header}
        return safetensors.numpy.save(found, facts | {"sha256": store.digest(header, found)})

    return Target(path, lambda: mlx_gpt.load(path), signed)


def of_nanochat(folder, name):
    """A file of nanochat with two residual streams, or the file of the streams."""
    settings = LLAMA | {"linear": "ternary", "ternary_activations": "int8", "norm_eps": 1e-6, "ffn_dim": 256}
    shape = {"n_embd": 128, "n_head": 4, "n_layer": 1, "block_size": 32, "ternary_group": "128"}
    nanochat.write(folder / "a.gguf", network(settings, **shape), folder / "a.mhc")
    return Target(folder / name, lambda: read_checkpoint(folder / "a.gguf", mhc=folder / "a.mhc"))


def of_ternary(folder):
    settings = LLAMA | {"linear": "ternary", "ternary_group": "128", "ffn_dim": 128}
    shape = {"n_embd": 128, "n_head": 4, "n_layer": 1, "block_size": 16}
    FORMATS["gguf"].write(network(settings, **shape), folder / "a.gguf")
    return Target(folder / "a.gguf", lambda: mlx_gpt.load(folder / "a.gguf"))


def of_shards(folder, name, mutate):
    """A folder with two files of weights and their index."""
    of_llama(folder, "huggingface")
    out = folder / "out"
    weights = safetensors.numpy.load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    files = {tensor: f"{number % 2}.safetensors" for number, tensor in enumerate(weights)}
    for file in set(files.values()):
        safetensors.numpy.save_file({k: w for k, w in weights.items() if files[k] == file}, out / file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return Target(out / name, lambda: mlx_gpt.load(out), mutate)


def of_ids(folder, dtype):
    np.random.default_rng(0).integers(0, 16, 500).astype(idfiles.DTYPES[dtype]).tofile(folder / "a.bin")
    return Target(folder / "a.bin", lambda: list(idfiles.raw_ids(folder / "a.bin", dtype, KNOWN).pieces()))


def of_tokens(folder, mutate=mutated):
    of_ids(folder, "uint16")
    path = folder / "a.tokens"
    import_ids(folder / "a.bin", "uint16", KNOWN, path, print)

    def use():
        corpus = open_corpus([str(path)])
        assert corpus.fingerprint and all(len(ids) for source in corpus.sources for ids, _ in source.ids.pieces())

    return Target(path, use, mutate)


def signed_tokens(good, draw):
    """A token file whose header, index or ids were changed, with the checksums of the change."""
    size = tokenfile.HEADER.size
    head, rest = mutated(good[: size - 4], draw)[: size - 4].ljust(size - 4, b"\0"), good[size:]
    if draw.random() < 0.7:
        head, rest = good[: size - 4], mutated(rest, draw)
    width, count = struct.unpack_from("<IQ", head, 12)
    index = rest[width * count :] if width * count < len(rest) else b""
    return head + struct.pack("<I", zlib.crc32(index, zlib.crc32(head))) + rest


def by_command(folder, name, content, *arguments, mutate=mutated):
    """A file that a command reads. An error of the command is a UserError."""
    (folder / name).write_text(content)

    def use():
        done = mlxgpt(*arguments, cwd=folder)
        if done.returncode:
            assert done.stderr.startswith("error: ") and done.returncode in (2, 3, 4), done
            raise UserError(done.stderr.removesuffix("\n"))

    return Target(folder / name, use, mutate)


OPTIONS = ["--preset=model-s", "--corpus=pydocs", "--set=train.seed=3", "--iters=5"]
PIPELINE = """[[stage]]
command = "train"
preset = "model-s"
corpus = ["pydocs"]
set = ["train.seed=3"]
iters = 5

[[stage]]
command = "rl"
lr = 1e-4
"""


def of_pipeline(folder):
    return by_command(folder, "a.toml", PIPELINE, "pipeline", "a.toml", "--plan")


def of_pipeline_state(folder):
    """Each stage is complete with the options of the file."""
    (folder / "a.toml").write_text(PIPELINE[: PIPELINE.index("\n\n") + 1])
    (folder / "out").mkdir()
    key = Stage(name="1-train", command="train", options=OPTIONS).key
    state = json.dumps({"1-train": {"key": key, "complete": True}})
    arguments = ["pipeline", "a.toml", "--out", "out"]
    target = by_command(folder, "out/pipeline.json", state, *arguments, mutate=mutated_json)
    without_training = mock.patch("mlx_gpt.cli.pipeline._run", lambda arguments, capture: (0, b""))
    return dataclasses.replace(target, read=without_training(target.read))


def of_id_list(folder):
    (folder / "tokenizer.json").write_text(tokenizer_json(KNOWN))
    arguments = ["tokenizer", "decode", "ids.json", "--vocab", "tokenizer.json"]
    return by_command(folder, "ids.json", json.dumps({"ids": [3, 4, 5]}), *arguments, mutate=mutated_json)


def of_problems(folder, name, form):
    lines = {
        "HumanEval": {"task_id": "a", "prompt": "def f(x):\n", "entry_point": "f", "test": "def check(f): pass"},
        "MBPP": {"task_id": 1, "text": "add", "code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"]},
    }
    data = "".join(json.dumps(lines[form] | {"task_id": n}) + "\n" for n in range(8))
    (folder / name).write_bytes(gzip.compress(data.encode()) if name.endswith(".gz") else data.encode())
    mutate = mutated if name.endswith(".gz") else mutated_lines
    return Target(folder / name, lambda: read_problems(folder / name, "python"), mutate)


def of_prompts(folder):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"task_id": f"a/{n}", "prompt": "def f(x):\n"}) + "\n" for n in range(8)))
    return Target(path, lambda: read_prompts(path, "python"), mutated_lines)


def of_history(folder):
    summary = {"settings": {"seed": 1, "language": "python"}, "totals": {"programs": 3}, "step": 1}
    lines = "".join(json.dumps(summary | {"step": n}) + "\n" for n in range(6))
    (folder / "eval-code.jsonl").write_text(lines)
    return Target(folder / "eval-code.jsonl", lambda: comparable(folder, summary), mutated_lines)


def of_watched(folder, name, mutate):
    """A run folder, as the dashboard and the list of runs show it."""
    run = folder / "runs/a"
    run.mkdir(parents=True)
    of_metrics(run)

    def use():
        runs = Runs([folder])
        runs.refresh(1 << 30)
        for found in runs:
            json.dumps([found.summary(), found.points(), list(found.alerts)], allow_nan=False)
            with contextlib.suppress(NotEvaluated):
                json.dumps(comparison([found.record()] * 2), allow_nan=False)
        json.dumps([facts.step for facts in list_runs(folder / "runs")])

    return Target(run / name, use, mutate)


TARGETS = {
    "checkpoint": of_checkpoint,
    "checkpoint of another name": lambda folder: of_checkpoint(folder, "a"),
    "checkpoint header with its hash": of_header,
    "checkpoint tensors with their hash": of_tensors,
    "state dict": of_state_dict,
    **{name: lambda folder, name=name: of_rgpt(folder, name) for name in ("rgpt0001", "rgpt0002", "rgpt0003")},
    "tokenizer.json of characters": lambda folder: of_vocabulary(
        folder, "tokenizer.json", tokenizer_json(CharTokenizer("".join(sorted(set(TEXT)))))
    ),
    "tokenizer.json of pairs": lambda folder: of_trained(folder, BPETokenizer),
    "tokenizer.json of bytes": lambda folder: of_trained(folder, ByteBPETokenizer),
    "vocab.json": of_vocab_json,
    "metrics.jsonl": of_metrics,
    "run.toml": of_settings,
    "preset": of_preset,
    "config.json": lambda folder: of_export(folder, "config.json", mutated_json),
    "exported tokenizer.json": lambda folder: of_export(folder, "tokenizer.json", mutated_json),
    "exported weights": lambda folder: of_export(folder, "model.safetensors", mutated),
    "Llama's config.json": lambda folder: of_llama(folder, "huggingface", "config.json", mutated_json),
    "Llama's weights": lambda folder: of_llama(folder, "huggingface", "model.safetensors"),
    "weights in several files": lambda folder: of_shards(folder, "0.safetensors", mutated),
    "index of several files": lambda folder: of_shards(folder, "model.safetensors.index.json", mutated_json),
    "mlx-lm's config.json": lambda folder: of_export(folder, "config.json", mutated_json, "mlx-lm"),
    "gguf": lambda folder: of_llama(folder, "gguf"),
    "ternary gguf": of_ternary,
    "nanochat": lambda folder: of_nanochat(folder, "a.gguf"),
    "nanochat's streams": lambda folder: of_nanochat(folder, "a.mhc"),
    **{
        name: lambda folder, name=name: of_text(folder, name) for name in ("a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz")
    },
    "uint16 ids": lambda folder: of_ids(folder, "uint16"),
    "uint32 ids": lambda folder: of_ids(folder, "uint32"),
    "token file": of_tokens,
    "token file with its checksums": lambda folder: of_tokens(folder, signed_tokens),
    "list of ids": of_id_list,
    "pipeline": of_pipeline,
    "pipeline.json": of_pipeline_state,
    "HumanEval": lambda folder: of_problems(folder, "a.jsonl", "HumanEval"),
    "MBPP": lambda folder: of_problems(folder, "a.jsonl", "MBPP"),
    "HumanEval, compressed": lambda folder: of_problems(folder, "a.jsonl.gz", "HumanEval"),
    "prompts": of_prompts,
    "eval-code.jsonl": of_history,
    "watched metrics.jsonl": lambda folder: of_watched(folder, "metrics.jsonl", mutated_lines),
    "watched run.toml": lambda folder: of_watched(folder, "run.toml", mutated),
}
