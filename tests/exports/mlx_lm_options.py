"""The options of mlx-lm on an exported folder: each writes what the rule of the context says, or is refused.

The rule: the next token is that of the last block_size tokens, read from position 0. `python mlx_lm_options.py FOLDER
SCRATCH`. Run by test_huggingface.py, in the environment with mlx-lm.
"""

import io
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import load
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step
from mlx_lm.models import cache as caches
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers

mx.set_default_device(mx.cpu)
folder, scratch = sys.argv[1:]
model, _ = load(folder, trust_remote_code=True)
SIZE, V = model.args.block_size, model.args.vocab_size
draw = np.random.default_rng(0)
PROMPTS = [draw.integers(2, V, n).tolist() for n in (5, 5 * SIZE, SIZE - 4, SIZE, SIZE + 6, 12)]
LAWS = []


def expected(prompt, count):
    """The greedy tokens after a prompt, from the network without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(model(mx.array([ids[-SIZE:]]))[0, -1].argmax().item())
    return ids[len(prompt) :]


def written(prompt, count, **options):
    return [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=count, **options)]


def refused(call, *words):
    try:
        call()
    except ValueError as error:
        assert "\n" not in str(error) and all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"not refused: {words}")


@LAWS.append
def a_prompt_is_read_in_pieces_of_any_length():
    for prompt in PROMPTS:
        for piece in (2048, SIZE, 7):
            assert written(prompt, 20, prefill_step_size=piece) == expected(prompt, 20), (len(prompt), piece)


@LAWS.append
def a_prompt_costs_at_most_three_contexts():
    """Its first one, for the cache, its last one, and that of the token that mlx-lm computes ahead."""
    block, outputs = type(model.layers[0]), []
    plain = block.__call__

    def recorded(self, *args):
        outputs.append(plain(self, *args))
        return outputs[-1]

    def is_computed(array):  # an array that was evaluated has no graph
        dot = io.StringIO()
        mx.export_to_dot(dot, array)
        return "label" not in dot.getvalue()

    block.__call__ = recorded
    try:
        for length in (2 * SIZE, 100 * SIZE):
            outputs.clear()
            written(draw.integers(2, V, length).tolist(), 1)
            positions = sum(y.shape[0] * y.shape[1] for y in outputs if is_computed(y))
            assert 0 < positions <= 3 * SIZE * len(model.layers), (length, positions)
    finally:
        block.__call__ = plain


@LAWS.append
def rows_of_a_batch_are_alone():
    """Rows join and leave, some within the context and some past it."""
    counts = [40, 25, 30, 35, 20, 90]
    for options in ({}, {"prefill_step_size": 16}, {"completion_batch_size": 2, "prefill_batch_size": 2}):
        batch = BatchGenerator(model, **options)
        found = {uid: [] for uid in batch.insert(PROMPTS, counts)}
        while sum(map(len, found.values())) < sum(counts):
            for told in batch.next()[1]:
                found[told.uid].append(told.token)
        for prompt, count, tokens in zip(PROMPTS, counts, found.values(), strict=True):
            assert tokens == expected(prompt, count), (options, len(prompt))


@LAWS.append
def padding_does_not_count():
    """Two rows that are longer than the context together with their padding, but not without it."""
    begun, more, states = [PROMPTS[2][: SIZE - 24], PROMPTS[0]], [PROMPTS[5][:2], PROMPTS[3][: SIZE - 24]], []
    for prompt in begun:
        states.append(caches.make_prompt_cache(model))
        written(prompt, 0, prompt_cache=states[-1])
    batch = [type(pair[0]).merge(pair) for pair in zip(*states, strict=True)]
    padding = [len(more[1]) - len(more[0]), 0]
    for state in batch:
        state.prepare(lengths=[2, len(more[1])], right_padding=padding)
    model(mx.array([more[0] + [0] * padding[0], more[1]]), cache=batch)
    for state in batch:
        state.finalize()
    following = mx.array([[2], [3]])
    found = model(following, cache=batch)[:, -1].argmax(-1).tolist()
    assert found == [expected([*begun[i], *more[i], 2 + i], 1)[0] for i in range(2)]


@LAWS.append
def a_draft_model_changes_no_token():
    draft, _ = load(folder, trust_remote_code=True)
    last = draft.layers[-1].mlp.fc2  # a draft that is sometimes wrong
    last.weight = mx.zeros_like(last.weight)
    for prompt in PROMPTS[:4]:
        told = list(speculative_generate_step(mx.array(prompt), model, draft, num_draft_tokens=3, max_tokens=30))
        assert [token for token, _, _ in told] == expected(prompt, 30), len(prompt)


@LAWS.append
def a_cache_is_saved_and_trimmed():
    more = PROMPTS[-1]
    for prompt in PROMPTS[:2]:
        state = caches.make_prompt_cache(model)
        written(prompt, 0, prompt_cache=state)
        caches.save_prompt_cache(scratch + ".safetensors", state)
        again = caches.load_prompt_cache(scratch + ".safetensors")
        assert written(more, SIZE, prompt_cache=again) == expected(prompt + more, SIZE)
        caches.trim_prompt_cache(state, len(prompt) - 3)
        assert written(more, SIZE, prompt_cache=state) == expected(prompt[:3] + more, SIZE)


@LAWS.append
def the_size_of_the_cache_is_the_models():
    """mlx-lm gives max_kv_size only to models without a cache of their own."""
    assert written(PROMPTS[0], 20, max_kv_size=8) == expected(PROMPTS[0], 20)
    refused(lambda: model(mx.array([[2]]), cache=[caches.KVCache() for _ in model.layers]), "make_prompt_cache(model)")


@LAWS.append
def adapters_begin_as_the_model_and_learn():
    tuned, _ = load(folder, trust_remote_code=True)
    batch, lengths = mx.array([PROMPTS[2], PROMPTS[3][:-4]]), mx.array([[0, SIZE - 4]] * 2)
    before, _ = default_loss(tuned, batch, lengths)
    tuned.freeze()
    linear_to_lora_layers(tuned, 2, {"rank": 2, "scale": 1.0, "dropout": 0.0})
    (loss, _), gradients = nn.value_and_grad(tuned, default_loss)(tuned, batch, lengths)
    assert abs(loss.item() - before.item()) < 1e-4
    tuned.update(_moved(tuned.trainable_parameters(), gradients))
    assert default_loss(tuned, batch, lengths)[0].item() < loss.item()
    long = mx.array([PROMPTS[1]])
    refused(lambda: default_loss(tuned, long, lengths), f"context of {SIZE} tokens", f"--max-seq-length {SIZE}")


def _moved(weights, gradients):
    """The weights after a short step against the gradients."""
    pairs = zip(tree_flatten(weights), tree_flatten(gradients), strict=True)
    return tree_unflatten([(name, w - 1e-3 * g) for (name, w), (_, g) in pairs])


for law in LAWS:
    law()
print("ok")
