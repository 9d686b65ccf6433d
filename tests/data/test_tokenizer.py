"""Characters as tokens."""

from collections import Counter

import numpy as np
import pytest

from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.data.vocabularies import tokenizer_from_dict
from mlx_gpt.errors import UserError

NASTY = ["", "a", "\n", "\r\n\t\x00", "<>", "é́ü", "日本語", "👩‍👩‍👧", "\U0010ffff", "<|eos|>"]


def test_ids_are_bos_eos_then_sorted_code_points():
    tokenizer = CharTokenizer.train(["ca", "b<"])
    assert tokenizer.encode("<abc").tolist() == [2, 3, 4, 5]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 6)
    assert tokenizer.decode([0, 3, 1, 4]) == "ab"


@pytest.mark.parametrize("text", NASTY)
def test_text_survives_the_round_trip(text):
    tokenizer = CharTokenizer.train(NASTY)
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    again = tokenizer_from_dict(tokenizer.to_dict())
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.token_bytes()[tokenizer.encode(text).astype(int)].sum() == len(text.encode())


def test_unknown_characters_are_named():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\) is not in the vocabulary"):
        CharTokenizer("abc").encode("abé")
    with pytest.raises(UserError, match="and 1 more are not"):
        CharTokenizer("abc").encode("uvwxyz")
    unknown = Counter()
    assert CharTokenizer("abc").encode("axbxy", unknown).tolist() == [2, 3]
    assert unknown == {"x": 2, "y": 1}


@pytest.mark.parametrize("characters, dtype", [(254, np.uint8), (255, np.uint16), (70_000, np.uint32)])
def test_ids_take_the_smallest_type(characters, dtype):
    points = [chr(i) for i in range(characters + 2048) if not 0xD800 <= i < 0xE000][:characters]
    assert CharTokenizer("".join(points)).encode(points[-1]).dtype == dtype
