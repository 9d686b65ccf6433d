"""Files with random changes: they are read, or refused in one line of our own, within a bound of memory."""

import dataclasses
import gzip
import json
import random
import resource
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import MODEL, checkpoint
from mutations import Mutate, mutated, mutated_json, mutated_lines, mutated_value
from networks import LLAMA
from reporting import evaluation, step

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.config.presets import preset_network, resolve
from mlx_gpt.config.schema import Config, DataConfig, ModelConfig
from mlx_gpt.data import corpus as corpus_module
from mlx_gpt.data import encoding, tokenfile
from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer, tokenizer_json
from mlx_gpt.data.corpus import Corpus, Source, open_corpus
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.data.vocabularies import open_vocab
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats import FORMATS, rgpt
from mlx_gpt.formats.huggingface.folder import require_whole
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.run import tuned
from mlx_gpt.run.loading import read_checkpoint
from mlx_gpt.watch.compare import differences, read_record, table, thresholds
from mlx_gpt.watch.metrics import MetricsFile, read_metrics

TEXT = "the quick brown fox\njumps over the lazy dog\n" * 20


@dataclass
class Target:
    """A good file, and how it is read.

    Attributes:
        path: The file.
        read: Reads the file and uses its content.
        mutate: Changes the bytes of the file.
    """

    path: Path
    read: Callable[[], object]
    mutate: Mutate = mutated


def of_checkpoint(folder):
    store.save(folder / "a.safetensors", checkpoint())
    return Target(folder / "a.safetensors", lambda: mlx_gpt.load(folder / "a.safetensors"))


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


def of_tuned(folder, monkeypatch):
    monkeypatch.setenv("MLXGPT_TUNED", "on")
    monkeypatch.setattr(tuned, "cache_dir", lambda: folder)
    path = tuned.keep(MODEL, {"settings": {"speed.lanes": 2, "speed.remat": True}, "rows": [{"seconds": 1.5}]})
    return Target(path, lambda: tuned.settings_for(MODEL), mutated_json)


def of_export(folder, name, mutate):
    """One file of an exported folder."""
    known = CharTokenizer("abc")
    FORMATS["huggingface"].write(checkpoint(tokenizer=known.to_dict()), folder / "out")

    def use():
        require_whole(folder / "out")
        mlx_gpt.load(folder / "out")

    return Target(folder / "out" / name, use, mutate)


def of_llama(folder, format, name="", mutate=mutated):
    """A file of Llama's network: the file `name` of a folder, or a file of a format that is no folder."""
    model, good = ModelConfig(**MODEL.shape(), **LLAMA), checkpoint(tokenizer=CharTokenizer("abc").to_dict())
    header = dataclasses.replace(good.header, config=Config(model=model))
    weights = {k: np.ones(shape, np.float32) for k, shape in shapes_of(model, header.vocab_size).items()}
    FORMATS[format].write(Checkpoint(header=header, weights=weights, optimizer={}), folder / "out")
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


TARGETS = {
    "checkpoint": of_checkpoint,
    "checkpoint header": of_header,
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
    "gguf": lambda folder: of_llama(folder, "gguf"),
    **{
        name: lambda folder, name=name: of_text(folder, name) for name in ("a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz")
    },
}


def resident() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def attack(target: Target, count: int, draw: random.Random) -> None:
    """Reads a file `count` times, each time with other changes.

    Each attempt succeeds or raises a UserError of one line, and needs no more memory than twice the file and 64 MiB.
    """
    good = target.path.read_bytes()
    target.read()
    before = resident()
    tracemalloc.start()
    try:
        for number in range(count):
            data = target.mutate(good, draw)
            target.path.write_bytes(data)
            tracemalloc.reset_peak()
            try:
                target.read()
            except UserError as error:
                assert isinstance(error, BadFile) <= (str(target.path.parent) in str(error)), (number, str(error))
                assert "\n" not in str(error) and len(str(error)) < 2000, (number, str(error))
            except BaseException as error:
                error.add_note(f"attempt {number}: {data[:3000]!r}")
                raise
            assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + (64 << 20), (number, data[:3000])
    finally:
        tracemalloc.stop()
    assert resident() - before < 256 << 20


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_read_or_refused_in_one_line(tmp_path, name, attempts, draw):
    attack(TARGETS[name](tmp_path), attempts(40, 1000), draw)


def test_a_changed_file_of_tuned_settings_is_ignored(tmp_path, attempts, draw, monkeypatch):
    target = of_tuned(tmp_path, monkeypatch)
    good = target.path.read_bytes()
    for _ in range(attempts(40, 1000)):
        target.path.write_bytes(target.mutate(good, draw))
        resolve(overrides=target.read())


class Stopping(CharTokenizer):
    """Is interrupted after 12 pieces of text."""

    encoded = 0

    def encode(self, *rest):
        self.encoded += 1
        if self.encoded > 12:
            raise KeyboardInterrupt
        return super().encode(*rest)


@pytest.mark.parametrize("suffix", [".tokens", ".part", ".json"])
def test_a_changed_token_file_never_gives_other_ids(tmp_path, suffix, attempts, draw, monkeypatch):
    """.part and .json are those of an interrupted encoding, which goes on or starts again."""
    monkeypatch.setattr(encoding, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(tokenfile, "SAVE_TOKENS", 50)
    monkeypatch.setattr(tokenfile, "BLOCK", 64)
    monkeypatch.setattr(corpus_module, "PIECE", 40)
    corpus = Corpus("c", (Source("c", 1.0, 99, lambda: [[TEXT[i : i + 40] for i in range(0, 800, 40)], [TEXT]]),))
    tokenizer = encoding.make_tokenizer(corpus, DataConfig(), print)
    plain = encoding.encode(corpus, tokenizer, print)
    monkeypatch.setattr(encoding, "MAPPED_BYTES", 0)
    begin = Stopping if suffix != ".tokens" else CharTokenizer
    try:
        encoding.encode(corpus, begin(tokenizer.characters), print)
    except KeyboardInterrupt:
        assert suffix != ".tokens"
    before = {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir()}
    (path,) = (path for path in before if path.suffix == suffix)
    for _ in range(attempts(25, 400)):
        for old in (tmp_path / "tokens").iterdir():
            old.unlink()
        for name, data in before.items():
            name.write_bytes(data)
        path.write_bytes(mutated(before[path], draw))
        told = []
        found = encoding.encode(corpus, tokenizer, told.append)
        assert np.array_equal(found.ids.host, plain.ids.host) and np.array_equal(found.lengths, plain.lengths)
        assert all("\n" not in line for line in told)
