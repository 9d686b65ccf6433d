"""Logit bias, penalties and min-p against NumPy, written from their definitions."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import mlx_gpt
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.generation.decode import decode
from mlx_gpt.generation.penalties import penalties_of, redraw, to_batch
from mlx_gpt.generation.sampling import Sampling, sample, to_draw

PROMPT, TEXT = [0, 1, 1, 2], [2, 3, 3, 3]
LOGITS = np.log(np.array([0.3, 0.25, 0.2, 0.15, 0.06, 0.04])).astype(np.float32) + np.float32(2.3)  # of either sign

OPTIONS = [
    {"min_p": 0.3},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.4},
    {"frequency_penalty": 0.4},
    {"frequency_penalty": -0.7},
    {"presence_penalty": 1.1},
    {"logit_bias": {4: 1.5, 0: -100}},
]
EVERYTHING = {k: v for options in OPTIONS[::-1] for k, v in options.items()} | {"top_p": 0.9, "top_k": 5}


def names(options):
    return "+".join(options) if isinstance(options, dict) else None


def expected(logits, how, prompt, text):
    """The probabilities (V,) of the next token."""
    logits = np.array(logits, np.float64)
    for id, value in how.logit_bias.items():
        logits[id] += value
    for id in {*prompt, *text}:
        logits[id] = logits[id] / how.repetition_penalty if logits[id] > 0 else logits[id] * how.repetition_penalty
    for id in text:
        logits[id] -= how.frequency_penalty
    for id in set(text):
        logits[id] -= how.presence_penalty
    order = np.argsort(-logits)
    p = np.exp((logits - logits.max()) / how.temperature)
    p[order[how.top_k or len(p) :]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= how.top_p]] = 0
    p[p < how.min_p * p.max()] = 0
    return p / p.sum()


def penalized(how, vocab_size, prompt, text):
    penalties = penalties_of(how, prompt, vocab_size)
    for id in text:
        penalties.add(id)
    return penalties


@pytest.mark.parametrize("temperature", [0.6, 1.5])
@pytest.mark.parametrize("options", [*OPTIONS, EVERYTHING], ids=names)
def test_draws_follow_the_definitions(options, temperature):
    how, count = Sampling(**{"temperature": temperature, "top_p": 1.0} | options), 4000
    rows = mx.broadcast_to(mx.array(LOGITS), (count, len(LOGITS)))
    draw = to_draw([(how, 0, i) for i in range(count)])
    batch = to_batch([(penalized(how, len(LOGITS), PROMPT, TEXT), False)] * count)
    found = np.bincount(np.array(redraw(rows, draw, batch, mx.zeros(count, mx.int32))), minlength=len(LOGITS)) / count
    wanted = expected(LOGITS, how, PROMPT, TEXT)
    assert np.abs(found - wanted).max() < 5 * 0.5 / count**0.5
    assert (found[wanted == 0] == 0).all()
    plain = np.bincount(np.array(sample(rows, draw)), minlength=len(LOGITS)) / count
    assert np.abs(found - plain).max() > 0.02  # the option is visible in this test


@pytest.mark.parametrize("trial", range(10))
def test_a_row_has_its_own_options_and_its_last_token_may_be_uncounted(trial):
    """Rows with different options, and one without any, in one batch. Each takes the most likely token."""
    draw, rows = np.random.default_rng(trial), []
    hows = [Sampling(temperature=0, **options) for options in ({}, *OPTIONS, EVERYTHING)]
    logits = draw.normal(0, 3, (len(hows), 9)).astype(np.float32)
    prompts, texts = draw.integers(9, size=(2, len(hows), 3)).tolist()
    for i, (how, prompt, text) in enumerate(zip(hows, prompts, texts, strict=True)):
        uncounted = i % 2 == trial % 2
        counted = text[: len(text) - uncounted]
        rows.append((penalized(how, 9, prompt, counted) if i else None, uncounted))
    last = mx.array([text[-1] for text in texts])
    found = redraw(mx.array(logits), to_draw([(how, 0, 0) for how in hows]), to_batch(rows), last)
    for id, row, how, prompt, text in zip(found.tolist(), logits, hows, prompts, texts, strict=True):
        assert id == np.argmax(expected(row, replace(how, temperature=1), prompt, text))


def test_a_text_without_the_options_has_no_penalties():
    assert penalties_of(Sampling(temperature=0.3, top_p=0.5, top_k=7), PROMPT, 9) is None
    assert to_batch([(None, True), (None, False)]) is None


@pytest.mark.parametrize("length", [1, 11, 30])
def test_greedy_text_with_penalties_is_that_of_a_plain_loop(small_run, length):
    """Also when the context is full and slides: the penalties count all tokens of the prompt and the text."""
    model, how = small_run.model, Sampling(temperature=0, repetition_penalty=1.3, frequency_penalty=0.05)
    prompt = np.random.default_rng(length).integers(2, 11, length).tolist()
    tokens = list(prompt)
    for _ in range(30):
        logits = model(mx.array([tokens[-model.config.block_size :]]))[0, -1]
        tokens.append(int(np.argmax(expected(logits, replace(how, temperature=1), prompt, tokens[length:]))))
    assert list(itertools.islice(decode(model, prompt, how), 30)) == tokens[length:]
    assert list(itertools.islice(decode(model, prompt, Sampling(temperature=0)), 30)) != tokens[length:]


def test_generate_takes_the_options_and_ends_at_a_stop_token(small_run):
    def text(**options):
        return "".join(mlx_gpt.generate(small_run, "ab", max_tokens=40, seed=2, temperature=1.0, top_p=1.0, **options))

    plain = text(logit_bias={1: -100})
    [end] = small_run.tokenizer.encode(plain[7])
    assert text(logit_bias={1: -100}, stop_token_ids=[end]) == plain[: plain.index(plain[7])]
    assert plain[7] not in text(logit_bias={1: -100, end: -100})
    assert len({plain, *(text(**{"logit_bias": {1: -100}} | options) for options in OPTIONS)}) == len(OPTIONS) + 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"min_p": 1.5}, "min_p=1.5 .* 0 .* to 1"),
        ({"min_p": float("nan")}, "min_p=nan"),
        ({"repetition_penalty": 0}, "repetition_penalty=0 .* 0.01 to 100"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty=inf"),
        ({"frequency_penalty": -2.1}, "frequency_penalty=-2.1 .* -2 to 2"),
        ({"presence_penalty": float("nan")}, "presence_penalty=nan"),
        ({"logit_bias": {3: 101}}, "logit_bias={3: 101} .* -100 to 100"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias={3: nan}"),
        ({"logit_bias": {"a": 1}}, "logit_bias={'a': 1} .* token id"),
        ({"logit_bias": {12: 1}}, "logit_bias has id 12; .* 0 to 11"),
        ({"logit_bias": {-1: 1}}, "logit_bias has id -1"),
        ({"stop_token_ids": [3, 12]}, "stop_token_ids has id 12; .* 0 to 11"),
    ],
)
def test_bad_values_are_refused_before_anything_is_generated(small_run, options, words):
    with pytest.raises(UserError, match=words):
        mlx_gpt.generate(small_run, **options)
