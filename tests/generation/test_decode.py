"""Sampling and decoding: the nucleus, traces, stop strings."""

import numpy as np
import pytest
from networks import plain_greedy

import mlx_gpt
from mlx_gpt.api import Run
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.generation.decode import decode
from mlx_gpt.generation.sampling import Sampling, sample, to_draw
from mlx_gpt.generation.text import TextStream
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.state import ModelState

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def run(small_run) -> Run:
    return small_run


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_decoding_is_traced_once_a_graph(run, monkeypatch):
    """The prompt, the step, and the full window that slides: three traces, however many tokens."""
    calls, forward = [], GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    take(decode(run.model, [3, 4], GREEDY), 40)
    assert len(calls) <= 3


def probabilities(how, logits, draws=4000):
    rows = mx.broadcast_to(mx.array(logits), (draws, len(logits)))
    drawn = np.array(sample(rows, to_draw([(how, 0, place) for place in range(draws)])))
    return np.bincount(drawn, minlength=len(logits)) / draws


@pytest.mark.parametrize(
    "how, kept",
    [
        (Sampling(temperature=1, top_p=1), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=1, top_p=0.5), [1, 0, 0, 0]),
        (Sampling(temperature=1, top_p=0.51), [5 / 8, 3 / 8, 0, 0]),  # the token that crosses is kept
        (Sampling(temperature=1, top_p=0.8001), [10 / 19, 6 / 19, 3 / 19, 0]),
        (Sampling(temperature=1, top_p=1, top_k=2), [5 / 8, 3 / 8, 0, 0]),
        (Sampling(temperature=1, top_p=1, top_k=99), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=1, top_p=1e-9), [1, 0, 0, 0]),
        (Sampling(temperature=0), [1, 0, 0, 0]),
        (Sampling(temperature=0.5, top_p=1), list(np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365)),
    ],
)
def test_draws_follow_temperature_then_top_k_then_the_nucleus(how, kept):
    order = [2, 0, 3, 1]  # the likeliest is not the first
    logits, expected = np.zeros(4, np.float32), np.zeros(4)
    logits[order], expected[order] = np.log([0.5, 0.3, 0.15, 0.05]), kept
    found = probabilities(how, logits)
    assert np.abs(found - expected).max() < 5 * 0.5 / 4000**0.5
    assert (found[expected == 0] == 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": 1e9},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Sampling(**settings)


def test_a_seed_repeats_a_text(run):
    def write(seed):
        return "".join(mlx_gpt.generate(run, "ab", max_tokens=40, temperature=1.0, top_p=1.0, seed=seed))

    assert write(1) == write(1) != write(2)


def test_text_comes_in_pieces_and_without_the_prompt(run):
    pieces = list(mlx_gpt.generate(run, "abc", max_tokens=20, temperature=0))
    ids = plain_greedy(run.model, run.tokenizer.encode("abc").tolist(), 20)
    ids = ids[: ids.index(1)] if 1 in ids else ids
    assert len(pieces) > 1 and "".join(pieces) == run.tokenizer.decode(ids)


def test_an_empty_prompt_starts_from_bos(run):
    text = "".join(mlx_gpt.generate(run, "", max_tokens=5, temperature=0))
    assert text == run.tokenizer.decode(plain_greedy(run.model, [0], 5))


class Scripted:
    """A model that says the given ids, whatever it reads."""

    def __init__(self, run, ids):
        self.config, self.vocab_size, self.ids = run.config.model, run.header.vocab_size, mx.array(ids)

    def weights(self):
        return {}

    def set_weights(self, weights):
        pass

    def packed(self):
        return self

    def new_state(self, rows, room):
        return ModelState([])

    def resized(self, layers, room):
        return layers

    def state_of(self, tree):
        return ModelState([], tree[0])

    def forward(self, tokens, state, valid=None):
        B, T = tokens.shape
        said = self.ids[state.next(T).indices].reshape(-1, T)[0]
        state.advance(B, T, valid)
        return mx.where(mx.arange(self.vocab_size) == said[:, None], 1.0, 0.0)[None], {}


def scripted(run, text, stop=(), max_tokens=100, end=()):
    ids = [*run.tokenizer.encode(text).tolist(), *end] + [2] * 200
    stream = TextStream(
        model=Scripted(run, ids), tokenizer=run.tokenizer, prompt=[3], how=GREEDY, max_tokens=max_tokens, stop=stop
    )
    return "".join(stream), stream


@pytest.mark.parametrize(
    "text, stop, expected",
    [
        ("abcdef", ("cd",), "ab"),
        ("abcdef", ("ef", "bc"), "a"),
        ("aab", ("ab",), "a"),
        ("abababc", ("abc",), "abab"),
        ("abc", ("abc",), ""),
        ("abcabd", ("abd",), "abc"),
        ("abcd", ("d", "bcd"), "a"),
    ],
)
def test_stop_strings_end_the_text_and_are_not_part_of_it(run, text, stop, expected):
    found, stream = scripted(run, text, stop)
    assert found == expected and stream.finish_reason == "stop"


def test_held_back_text_is_not_lost_at_the_end(run):
    found, stream = scripted(run, "aaab", ("bcd",), max_tokens=4)
    assert found == "aaab" and stream.finish_reason == "length" and stream.num_tokens == 4


def test_eos_stops(run):
    found, stream = scripted(run, "ab", end=[1])
    assert found == "ab" and stream.finish_reason == "stop" and stream.num_tokens == 3


def test_no_tokens_are_no_text(run):
    assert "".join(mlx_gpt.generate(run, "a", max_tokens=0)) == ""


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"prompt": "aéz"}, r"'é' \(U\+00E9\)"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"stop": [""]}, "empty stop"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(run, arguments, words):
    with pytest.raises(UserError, match=words):
        mlx_gpt.generate(run, **arguments)


@pytest.mark.parametrize("prompt", [[], [-1], [12], [0] * 30 + [99]])
def test_ids_out_of_range_never_reach_the_model(run, prompt):
    with pytest.raises(UserError):
        next(decode(run.model, prompt, GREEDY))
