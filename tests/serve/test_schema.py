"""Requests become jobs: what is checked, in which order, and what a refusal costs."""

import json

import pytest
from serving import CONTEXT

from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.serve import fields, schema
from mlx_gpt.serve.schema import Limits, Reader
from mlx_gpt.web.errors import ApiError


class Counting(CharTokenizer):
    """Counts the texts that it encodes."""

    count = 0

    def encode(self, text, unknown=None):
        self.count += 1
        return super().encode(text, unknown)


@pytest.mark.parametrize(
    "body, param",
    [
        ({"prompt": [""] * 250_000}, "n"),
        ({"prompt": ["a"] * 9, "n": 2}, "n"),
        ({"prompt": "a", "max_tokens": 5000}, "max_tokens"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "stop": ["b"] * 17}, "stop"),
    ],
)
def test_what_is_refused_without_its_ids_is_not_encoded(body, param):
    tokenizer = Counting("ab")
    with pytest.raises(ApiError) as caught:
        Reader(tokenizer, CONTEXT, Limits(max_choices=16)).completion(completion(body))
    assert caught.value.body["error"]["param"] == param and tokenizer.count == 0


@pytest.mark.parametrize("kind", [schema.CompletionRequest, schema.ChatRequest])
def test_every_neutral_value_is_the_same_as_none(kind):
    plain = {"prompt": "a"} if kind is schema.CompletionRequest else {"messages": [{"role": "user", "content": "a"}]}
    expected = fields.decode(json.dumps(plain).encode(), kind)
    for name, values in fields.NEUTRAL.items():
        for value in (None, *values):
            assert fields.decode(json.dumps(plain | {name: value}).encode(), kind) == expected, (name, value)
    for name in fields.IGNORED:
        assert fields.decode(json.dumps(plain | {name: {"any": "value"}}).encode(), kind) == expected


@pytest.mark.parametrize(
    "name, value",
    [
        ("best_of", 2),
        ("min_p", "0.1"),
        ("min_tokens", True),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "a"}),
        ("repetition_penalty", True),
        ("repeat_last_n", 64),
        ("stop_token_ids", 3),
        ("tools", [{}]),
        ("top_k", -2),
    ],
)
def test_other_values_are_refused_by_name(name, value):
    with pytest.raises(ApiError, match=name) as caught:
        completion({"prompt": "a", name: value})
    assert caught.value.body["error"]["param"] == name


def test_best_of_may_equal_n():
    assert completion({"prompt": "a", "n": 3, "best_of": 3}).n == 3
    with pytest.raises(ApiError, match="best_of=4"):
        completion({"prompt": "a", "n": 3, "best_of": 4})


@pytest.mark.parametrize("name", ["max_tokens", "n", "seed", "top_k"])
def test_a_whole_number_may_have_a_fraction_of_zero(name):
    assert getattr(completion({"prompt": "a", name: 16.0}), name) == 16
    with pytest.raises(ApiError, match=f"{name}=16.5"):
        completion({"prompt": "a", name: 16.5})


def completion(body):
    return fields.decode(json.dumps(body).encode(), schema.CompletionRequest)
