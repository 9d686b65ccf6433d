"""GGUF files in llama.cpp: tokens, log-probabilities and greedy text are those of mlxgpt.

llama.cpp and the package gguf are in an environment of their own, whose Python MLXGPT_EXPORT_PYTHON names. `make
test-exports` makes it.
"""

import json
import os
import random
import subprocess
from collections import Counter

import numpy as np
import pytest
import tokenizers
from checkpoints import far_from_start
from constants import ROOT
from networks import LLAMA
from tokenizers import decoders, models, pre_tokenizers, trainers

import mlx_gpt
from mlx_gpt.api import Run
from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.formats import gguf, llama_gguf
from mlx_gpt.formats.gguf_tokenizer import PRE
from mlx_gpt.run.loading import load

OTHER_PYTHON = os.environ.get("MLXGPT_EXPORT_PYTHON")
pytestmark = pytest.mark.skipif(not OTHER_PYTHON, reason="needs an environment with llama.cpp; make test-exports")
SHAPE = {"n_embd": 64, "n_head": 4, "n_layer": 2, "block_size": 128, "ffn_dim": 96}
UNICODE = "naïve café e\u0301 日本語 Ω≈ç 😀👩\u200d👩\u200d👧 שלום \u00a0\u2003x\t|~\r\n"
# Networks: one without shared heads and not tied, and Llama's shape with every setting changed.
NETWORKS = [LLAMA | {"n_kv_head": 0, "tied_head": False, "rope_theta": 1e4, "rope_scale": 1.0}, LLAMA]


@pytest.fixture(scope="module")
def text():
    try:
        found = "\n".join(open_corpus(["shakespeare"]).documents)
    except UserError:
        found = "\n".join(open_corpus(["pydocs"]).documents)
    return found


def with_words(text, pre):
    """A byte-level tokenizer whose words are those of a row of PRE, trained on a text."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|begin_of_text|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator([text], trainer)
    facts = json.loads(engine.to_str())
    steps, facts["model"]["ignore_merges"] = PRE[pre]
    facts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"trim_offsets": True} | step for step in steps]}
    return ByteBPETokenizer(json.dumps(facts), ["<|begin_of_text|>", "<|im_end|>"])


MAKE = {
    "char": lambda text: CharTokenizer.train([text]),
    "bpe": lambda text: BPETokenizer.train([text[:200_000]], 600, set(text)),
    "byte-bpe": lambda text: ByteBPETokenizer.train([text[:200_000]], 600, set()),
    **{pre: lambda text, pre=pre: with_words(text[:200_000], pre) for pre in PRE if pre != "trillion"},
}


def adversarial(tokenizer, text) -> list[str]:
    """Texts that are hard to encode. Those for "bpe" have known characters only, see docs/interoperability.md."""
    draw = random.Random(0)
    alphabet = sorted(set(text))
    texts = ["", " ", "\n", "\n\n\n", " " * 300, "a" * 300, " \n \n  x", text[:5000]]
    texts += ["<|eos|>", "a<|bos|>b<|endoftext|><|im_end|>"]
    texts += [UNICODE, UNICODE[::-1], "I'll we've 'TIS'S don't 1234567 12 a1b22", "x \r\n\r\n \t y"]
    texts += ["".join(draw.choices(alphabet, k=draw.randint(1, 60))) for _ in range(300)]
    texts += [tokenizer.decode(draw.choices(range(2, tokenizer.vocab_size), k=20)) for _ in range(100)]
    if tokenizer.kind == "bpe":
        return [t for t in texts if set(t) <= set(text)]
    return texts + ["".join(chr(draw.choice((draw.randrange(32, 0xD800), draw.randrange(32, 256)))) for _ in range(40))]


def expectations(run: Run, checkpoint: Checkpoint, text: str, file, file_type: str = "F32") -> None:
    """Writes what use_llama_cpp.py compares with."""
    model, tokenizer = checkpoint.header.config.model, run.tokenizer
    ids = tokenizer.encode(text[20_000:24_000], Counter()).tolist()
    lengths = [1, 2, 3, 7, 16, 33, 50, 65, 100, 127]  # more than half the context, and one less than all of it
    prompts = [ids[i : i + n] for i, n in enumerate(lengths)]
    logits = [run.model(np.array([prompt]))[0, -1] for prompt in prompts]
    logprobs = np.array(mx.stack([x - mx.logsumexp(x) for x in logits]))
    greedy = list(ids[:20])
    for _ in range(64):
        greedy.append(int(mx.argmax(run.model(np.array([greedy]))[0, -1]).item()))
    assert file_type != "F32" or tokenizer.eos_id not in greedy[20:], "choose other weights"
    prompt = tokenizer.decode(ids[:20])
    if file_type == "F32":
        assert "".join(mlx_gpt.generate(run, prompt, max_tokens=64, temperature=0)) == tokenizer.decode(greedy[20:])
    texts = [(t, tokenizer.encode(t, Counter()).tolist()) for t in [*adversarial(tokenizer, text + UNICODE), text]]
    metadata = {
        "general.architecture": "llama",
        "general.file_type": llama_gguf.FILE_TYPES[file_type],
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count_kv": model.num_kv_heads,
        "llama.rope.freq_base": float(np.float32(model.rope_base)),
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.add_bos_token": False,
    }
    facts = {
        "metadata": metadata,
        "block_size": 128,
        "texts": texts,
        "prompts": prompts,
        "targets": [ids[i + n] for i, n in enumerate(lengths)],
        "greedy": [greedy[:20], greedy[20:], tokenizer.decode(greedy[20:])],
        "eos": tokenizer.eos_id,
        "plain": int(tokenizer.encode("e")[0]),
    }
    tensors = {f"tensor.{name}": w for name, w in in_their_names(checkpoint).items()}
    np.savez(file, facts=json.dumps(facts), logprobs=logprobs, **tensors)


def in_their_names(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The tensors of the file. Of a head's query and key rows, the two halves take turns."""
    model, found = checkpoint.header.config.model, {}
    theirs = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
    theirs |= {"fc_gate": "ffn_gate", "fc1": "ffn_up", "fc2": "ffn_down", "attn_norm": "attn_norm"}
    outer = {"wte": "token_embd", "final_norm": "output_norm", "lm_head": "output"}
    for name, weight in checkpoint.weights.items():
        parts = name.split(".")
        if parts[0] in outer:
            found[f"{outer[parts[0]]}.weight"] = weight
            continue
        last = theirs.get(parts[-2], "ffn_norm")
        if last in ("attn_q", "attn_k"):
            half, rows = model.head_dim // 2, []
            for head in weight.reshape(-1, 2 * half, 64):
                rows += [row for j in range(half) for row in (head[j], head[half + j])]
            weight = np.stack(rows)
        found[f"blk.{parts[1]}.{last}.weight"] = weight
    return found


def run_llama_cpp(file, expected) -> dict:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [OTHER_PYTHON, ROOT / "tests/exports/use_llama_cpp.py", file, expected]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=file.parent, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("network", NETWORKS, ids=["untied", "tied"])
@pytest.mark.parametrize("kind", MAKE)
def test_llama_cpp_computes_what_mlxgpt_computes(tmp_path, text, kind, network):
    """Ids are equal, log-probabilities agree within 1e-4, greedy text is equal, and EOS ends a text."""
    tokenizer = MAKE[kind](text + UNICODE)
    checkpoint = far_from_start(ModelConfig(**SHAPE, **network), tokenizer)
    llama_gguf.write(tmp_path / "model.gguf", checkpoint)
    run = load(tmp_path / "model.gguf")
    assert run.tokenizer.to_dict() == tokenizer.to_dict()
    expectations(run, checkpoint, text, tmp_path / "expected.npz")
    run_llama_cpp(tmp_path / "model.gguf", tmp_path / "expected.npz")


@pytest.mark.parametrize("file_type, bound", [("F16", 0.002), ("Q8_0", 0.03)])
def test_smaller_types_load_and_change_the_loss_little(tmp_path, text, file_type, bound):
    """The loss of ten prompts, in nats per token, is close to that of F32. llama.cpp rounds activations too."""
    tokenizer, losses = MAKE["char"](text + UNICODE), {}
    checkpoint = far_from_start(ModelConfig(**SHAPE, **LLAMA), tokenizer)
    for kind in ("F32", file_type):
        llama_gguf.write(tmp_path / "model.gguf", checkpoint, kind)
        expectations(load(tmp_path / "model.gguf"), checkpoint, text, tmp_path / "expected.npz", kind)
        losses[kind] = run_llama_cpp(tmp_path / "model.gguf", tmp_path / "expected.npz")["loss"]
    assert abs(losses[file_type] - losses["F32"]) < bound, losses


def test_a_file_of_the_package_gguf_is_read(tmp_path):
    """Its metadata of every type, and its tensors of every type that is read."""
    code = f"""
import gguf, numpy as np
kinds = gguf.GGMLQuantizationType
writer = gguf.GGUFWriter({str(tmp_path / "theirs.gguf")!r}, "llama")
writer.add_uint8("u8", 1); writer.add_int8("i8", -1); writer.add_uint16("u16", 2); writer.add_int16("i16", -2)
writer.add_uint32("u32", 3); writer.add_int32("i32", -3); writer.add_uint64("u64", 4); writer.add_int64("i64", -4)
writer.add_float32("f32", 0.1); writer.add_float64("f64", 0.1); writer.add_bool("yes", True)
writer.add_string("s", "é"); writer.add_array("strings", ["a", "", "ß"]); writer.add_array("ints", [1, 2, 3])
x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
np.save({str(tmp_path / "x.npy")!r}, x)
for kind in ("F32", "F16", "BF16", "Q8_0"):
    writer.add_tensor(kind, gguf.quantize(x, kinds[kind]), raw_dtype=kinds[kind])
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""
    done = subprocess.run([OTHER_PYTHON, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metadata, entries = gguf.read_header(tmp_path / "theirs.gguf")
    assert metadata.pop("ints").tolist() == [1, 2, 3]
    numbers = {"u8": 1, "i8": -1, "u16": 2, "i16": -2, "u32": 3, "i32": -3, "u64": 4, "i64": -4}
    numbers |= {"f32": np.float32(0.1), "f64": 0.1, "yes": True}
    assert metadata == numbers | {"general.architecture": "llama", "s": "é", "strings": ["a", "", "ß"]}
    x = np.load(tmp_path / "x.npy")
    with open(tmp_path / "theirs.gguf", "rb") as file:
        found = {name: gguf.read_tensor(file, entry) for name, entry in entries.items()}
    assert np.array_equal(found["F32"], x) and np.array_equal(found["F16"], x.astype(np.float16))
    assert np.abs(found["BF16"] - x).max() < np.abs(x).max() / 256
    gguf.write(tmp_path / "ours.gguf", {}, {"F16": x, "Q8_0": x}, {"F16": "F16", "Q8_0": "Q8_0"})
    ours, theirs = ((tmp_path / f"{name}.gguf").read_bytes() for name in ("ours", "theirs"))
    for name, entry in gguf.read_header(tmp_path / "ours.gguf")[1].items():
        assert ours[entry.first : entry.end] == theirs[entries[name].first : entries[name].end], name
