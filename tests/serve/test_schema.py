"""Requests become jobs: what is checked, in which order, and what a refusal costs."""

import json

import pytest
from serving import CONTEXT

from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.serve import schema
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


def completion(body):
    return schema.decode(json.dumps(body).encode(), schema.CompletionRequest)
