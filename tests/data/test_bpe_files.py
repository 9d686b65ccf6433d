"""Vocabulary files that are corrupt or hostile: each is refused before anything is allocated."""

import json
import tracemalloc

import pytest

from mlx_gpt.data.bpe import ByteBPETokenizer
from mlx_gpt.data.tokenizer import SPECIALS
from mlx_gpt.data.vocabularies import open_vocab, tokenizer_from_dict
from mlx_gpt.errors import BadFile


def character_tokenizer(vocab, merges=()):
    step = {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False}
    return {"model": {"type": "BPE", "vocab": vocab, "merges": list(merges)}, "pre_tokenizer": step}


LETTERS = {s: i for i, s in enumerate([*SPECIALS, "a", "b"])}


@pytest.mark.parametrize(
    "content",
    [
        character_tokenizer(LETTERS | {"b": 3_000_000_000}),
        character_tokenizer(LETTERS | {"b": -1}),
        character_tokenizer(LETTERS | {"b": 2}),
        character_tokenizer(LETTERS | {"b": "3"}),
        character_tokenizer({}),
        character_tokenizer(LETTERS | {"ab": 4}, [["ab"]]),
        character_tokenizer(LETTERS, [3]),
        {"vocab": [*SPECIALS, "a", "b"], "merges": [["a"]]},
        {"vocab": [*SPECIALS, 5], "merges": []},
    ],
)
def test_ids_and_merges_that_a_file_may_not_hold_are_refused_before_anything_is_allocated(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match="tokenizer.json: "):
            open_vocab(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_huge_id_of_a_byte_level_vocabulary_is_refused(tmp_path):
    facts = json.loads(ByteBPETokenizer.train(["some text"], 270, set()).to_json())
    facts["model"]["vocab"]["zzzz"] = 3_000_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    with pytest.raises(BadFile, match="has the id 3000000000, but ids must be below 2097152"):
        open_vocab(tmp_path)


@pytest.mark.parametrize("merge", ["a b", ["x" * 50, "y" * 50], "a", "Ġ Ġ Ġ"])
def test_a_merge_whose_result_is_not_a_token_is_refused(merge):
    """The library ends with a panic, which is not an Exception, if the result is longer than every token."""
    facts = json.loads(ByteBPETokenizer.train(["some text"], 260, set()).to_json())
    facts["model"]["merges"].append(merge)
    facts["model"]["vocab"].pop("a")
    with pytest.raises(BadFile, match="gives a string that is not a token"):
        ByteBPETokenizer(json.dumps(facts))


def test_two_tokens_with_one_id_are_refused():
    facts = json.loads(ByteBPETokenizer.train(["the cat sat on the mat"], 270, set()).to_json())
    vocab = facts["model"]["vocab"]
    vocab["$"] = vocab["#"]
    with pytest.raises(BadFile, match=f"two tokens have the id {vocab['#']}"):
        ByteBPETokenizer(json.dumps(facts))


def test_bos_and_eos_can_be_named():
    text = ByteBPETokenizer.train(["some text"], 270, set()).to_json()
    assert (ByteBPETokenizer(text).bos_id, ByteBPETokenizer(text).eos_id) == (0, 1)
    named = ByteBPETokenizer(text, ["<|eos|>", "<|bos|>"])
    again = tokenizer_from_dict(named.to_dict())
    assert (again.bos_id, again.eos_id, again.to_dict()) == (1, 0, named.to_dict())
    for names in (["<|eos|>"], ["<|eos|>", "absent"], 3):
        with pytest.raises(BadFile):
            tokenizer_from_dict({"kind": "byte-bpe", "json": text, "specials": names})


def test_the_tokenizer_of_a_checkpoint_is_checked_too():
    for data in ({"kind": "bpe", "vocab": [*SPECIALS, "a"], "merges": [["a"]]}, {"kind": "byte-bpe", "json": "[]"}, []):
        with pytest.raises(BadFile, match="merges|tokenizer"):
            tokenizer_from_dict(data)


@pytest.fixture
def byte_level():
    return json.loads(ByteBPETokenizer.train(["some text"], 270, set()).to_json())


@pytest.mark.parametrize(
    "option, value", [("dropout", 0.5), ("continuing_subword_prefix", "\u202e"), ("end_of_word_suffix", "</w>")]
)
def test_an_option_that_changes_the_ids_of_a_byte_level_vocabulary_is_refused(tmp_path, byte_level, option, value):
    """The library panics at some of them."""
    byte_level["model"][option] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level))
    with pytest.raises(BadFile, match="without a normalizer, dropout, prefix or suffix"):
        open_vocab(tmp_path)


def test_no_text_is_cut_or_padded_whatever_the_file_says(tmp_path, byte_level):
    (tmp_path / "plain.json").write_text(json.dumps(byte_level))
    byte_level["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    side = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None}
    byte_level["padding"] = side | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|eos|>"}
    (tmp_path / "cut.json").write_text(json.dumps(byte_level))
    ids = [open_vocab(tmp_path / name).encode("some more text").tolist() for name in ("plain.json", "cut.json")]
    assert ids[0] == ids[1]
