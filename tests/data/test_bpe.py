"""Byte-pair encodings: the public system's vectors and rule, GPT-2's kind, and files of others."""

import heapq
import json
import random
from collections import Counter

import numpy as np
import pytest
import tokenizers

from mlx_gpt.data import bpe
from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.tokenizer import SPECIALS
from mlx_gpt.data.vocabularies import open_vocab, tokenizer_from_dict
from mlx_gpt.errors import BadFile, UserError

NASTY = [
    "",
    "\n",
    "\n\n\n",
    "a",
    "to be\nor not\n\nto be",
    " \t \r\n ",
    "<|eos|><|bos|>",
    "e\u0301e\u0301",
    "👩‍👩‍👧 naïve 日本語",
    "\x00\x7f\u2028",
    "ththththe the  the\n the",
    "\udc80 lone",
]


def reference(vocab, merges, text):
    """The public rule, as slow and plain as it is told."""
    ids = {}
    for i, string in enumerate(vocab):
        ids[string] = i
    table = {}
    for left, right in merges:
        if left in ids and right in ids and left + right in ids:
            table.setdefault((ids[left], ids[right]), ids[left + right])
    result = []
    for number, line in enumerate(text.split("\n")):
        if number and "\n" in ids:
            result.append(ids["\n"])
        line = [ids[c] for c in line if c in ids]
        while True:
            ranks = [table[p] for p in zip(line, line[1:], strict=False) if p in table]
            if not ranks:
                break
            lowest, place = min(ranks), 0
            while place < len(line) - 1:
                if table.get((line[place], line[place + 1])) == lowest:
                    line[place : place + 2] = [lowest]
                place += 1
        result += line
    return result


def assert_as_reference(tokenizer, text):
    assert tokenizer.encode(text, Counter()).tolist() == reference(tokenizer.vocab, tokenizer.merges, text), repr(text)


@pytest.fixture(scope="module")
def public(vectors):
    return open_vocab(vectors / "bpe-1500.vocab.json")


@pytest.fixture(scope="module")
def pydocs():
    return "\n".join(open_corpus(["pydocs"]).documents)


# -- randyGPT's -----------------------------------------------------------------------------------------------------


def test_the_public_vector_is_encoded_and_decoded(public, vectors):
    data = json.loads((vectors / "bpe-1500.ids.json").read_text())
    assert public.encode(data["text"]).tolist() == data["ids"]
    assert public.decode(data["ids"]) == data["decoded"]
    assert public.to_vocab_json() == (vectors / "bpe-1500.vocab.json").read_text()


def test_nasty_strings_are_encoded_by_the_rule(public, monkeypatch):
    monkeypatch.setattr(bpe, "CHUNK", 5)
    for text in NASTY:
        assert_as_reference(public, text)


@pytest.mark.parametrize("seed", range(60))
def test_random_vocabularies_follow_the_rule(seed, monkeypatch):
    """Duplicate strings, merges out of order, of parts that are not there, across newlines; newlines or none."""
    monkeypatch.setattr(bpe, "CHUNK", 7)
    draw = random.Random(seed)
    alphabet = "abc" + ("\n" if seed % 2 else "")
    vocab, merges = [*SPECIALS, *sorted(alphabet)], []
    for _ in range(draw.randint(1, 25)):
        parts = [draw.choice(vocab[2:]), draw.choice(vocab[2:])]
        if draw.random() < 0.1:
            parts[0] += "q"
        elif draw.random() < 0.95:
            vocab.append("".join(parts))
        merges.append(tuple(parts))
    if seed % 3 == 0:
        draw.shuffle(merges)
    if seed % 4 == 0:
        tail = vocab[2 + len(alphabet) :]
        draw.shuffle(tail)
        vocab[2 + len(alphabet) :] = tail
    tokenizer = BPETokenizer(vocab, merges)
    for length in (0, 1, 2, 3, 10, 40, 200):
        assert_as_reference(tokenizer, "".join(draw.choice(alphabet + "\nz") for _ in range(length)))
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert (again.vocab, again.merges) == (vocab, merges)


def test_both_ways_of_computing_are_tried(public):
    """The random vocabularies above are of both kinds: those that the library computes and those that it can't."""
    assert public.to_files().keys() == {"tokenizer.json", "vocab.json"}
    disordered = BPETokenizer([*SPECIALS, "a", "b", "aba", "ab"], [("a", "b"), ("ab", "a")])
    assert disordered.to_files().keys() == {"vocab.json"}
    assert_as_reference(disordered, "abababaab")


def test_text_that_spells_a_special_is_text():
    vocab = [*SPECIALS, *sorted(set("<|eos|>")), "<|", "eo", "eos", "|>", "<|eos", "<|eos|>"]
    merges = [("<", "|"), ("e", "o"), ("eo", "s"), ("|", ">"), ("<|", "eos"), ("<|eos", "|>")]
    tokenizer = BPETokenizer(vocab, merges)
    assert tokenizer.encode("<|eos|>").tolist() == [len(vocab) - 1]  # the string's last id, not EOS
    assert (tokenizer.eos_id, tokenizer.decode([0, 1, len(vocab) - 1])) == (1, "<|eos|>")


def test_unknown_characters_are_counted_or_refused(public):
    unknown = Counter()
    assert public.decode(public.encode("na\u0436ve \u65e5\u65e5", unknown)) == "nave "
    assert unknown == {"\u0436": 1, "\u65e5": 2}
    with pytest.raises(UserError, match=r"'日' \(U\+65E5\) is not in the vocabulary"):
        public.encode("\u65e5\u65e5")


def reference_merges(text, vocab_size):
    """The most frequent pair again and again, counted anew each time; of equals that of the lower ids."""
    vocab, merges = [*SPECIALS, *sorted(set(text))], []
    lines = [[vocab.index(c) for c in line] for line in text.split("\n")]
    while len(vocab) < vocab_size:
        counts = Counter(pair for line in lines for pair in zip(line, line[1:], strict=False))
        counts = {pair: n for pair, n in counts.items() if vocab[pair[0]] + vocab[pair[1]] not in vocab}
        if not counts:
            break
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        for line in lines:
            place = 0
            while place < len(line) - 1:
                if (line[place], line[place + 1]) == (left, right):
                    line[place : place + 2] = [len(vocab)]
                place += 1
        merges.append((vocab[left], vocab[right]))
        vocab.append(vocab[left] + vocab[right])
    return merges


def reference_randygpt_merges(text, vocab_size):
    """randyGPT's rule step by step: one sequence, recorded counts, a max-heap whose outdated entries are skipped."""
    vocab, merges = [*SPECIALS, *sorted(set(text))], []
    ids = [vocab.index(c) for c in text]
    counts, heap = Counter(zip(ids, ids[1:], strict=False)), []
    for (left, right), n in counts.items():
        heapq.heappush(heap, (-n, -left, -right))
    while len(vocab) < vocab_size and heap:
        n, left, right = (-x for x in heapq.heappop(heap))
        if counts[left, right] != n:
            continue
        new, out, adjusted, i = len(vocab), [], [], 0

        def adjust(pair, change, adjusted=adjusted):
            counts[pair] += change
            adjusted.append(pair)

        while i < len(ids):
            if ids[i : i + 2] != [left, right]:
                out.append(ids[i])
                i += 1
                continue
            if out:
                adjust((out[-1], left), -1)
                adjust((out[-1], new), 1)
            adjust((left, right), -1)
            if i + 2 < len(ids):
                adjust((right, ids[i + 2]), -1)
                adjust((new, ids[i + 2]), 1)
            out.append(new)
            i += 2
        for pair in adjusted:
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], -pair[0], -pair[1]))
        ids = out
        merges.append((vocab[left], vocab[right]))
        vocab.append(vocab[left] + vocab[right])
    return merges


RUNS = [
    "abab",
    "aaaa bbb ab",
    "the cat\nthe hat\nthe mat",
    "x" * 50,
    "",
    "\n\n",
    "a",
    "<|eos|" * 9 + ">" * 9 + "<|eos|>" * 9,
]


def random_text(seed):
    """A text of few different characters, so that its pairs overlap and are equally frequent."""
    draw = random.Random(seed)
    alphabet = "ab\n" if seed % 3 == 0 else "aab\n\u00e9\U0001f600"
    return "".join(draw.choice(alphabet) for _ in range(draw.choice([10, 100, 1000])))


TEXTS = [*RUNS, *map(random_text, range(60))]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_training_merges_the_most_frequent_pair_first(text):
    tokenizer = BPETokenizer.train([text], len(set(text)) + 42, set(text))
    assert tokenizer.merges == reference_merges(text, len(set(text)) + 42)
    assert "tokenizer.json" in tokenizer.to_files()


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_training_by_randygpts_rule_makes_its_merges(text):
    """Of one text, and of the same text in pieces."""
    expected = reference_randygpt_merges(text, len(set(text)) + 42)
    for texts in ([text], [text[:4], text[4:9], text[9:]]):
        tokenizer = BPETokenizer.train(texts, len(set(text)) + 42, set(text), "randygpt")
        assert tokenizer.merges == expected
        assert tokenizer.vocab == [*SPECIALS, *sorted(set(text)), *(a + b for a, b in expected)]
    assert_as_reference(tokenizer, text)


def test_training_by_randygpts_rule_makes_its_file(vectors, shakespeare):
    (text,) = open_corpus([shakespeare]).documents
    text = text[:200_000]  # all ASCII
    tokenizer = BPETokenizer.train([text], 600, set(text), "randygpt")
    assert tokenizer.to_files()["vocab.json"] == (vectors / "bpe-train-600.vocab.json").read_text()


def test_a_string_that_is_there_already_is_not_made_twice():
    """(a, bc) and (ab, c) spell the same; so may a special."""
    text = "\n".join(["ab"] * 9 + ["bcd"] * 8 + ["abc"] * 7 + ["xbc"] * 6 + ["abcd"] * 3)
    tokenizer = BPETokenizer.train([text], 30, set(text))
    assert len(set(tokenizer.vocab)) == tokenizer.vocab_size
    assert tokenizer.merges == reference_merges(text, 30)


def test_training_in_pieces_counts_over_all_of_them_and_merges_none_across():
    tokenizer = BPETokenizer.train(["ab", "ab", "cd", "ac"], 20, set("abcd"))
    assert tokenizer.merges[0] == ("a", "b") and ("b", "a") not in tokenizer.merges
    assert tokenizer.merges == reference_merges("ab\nab\ncd\nac", 20)[: len(tokenizer.merges)]


def test_training_comes_to_the_librarys_merges(pydocs):
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Split("\n", "isolated")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500, special_tokens=list(SPECIALS), initial_alphabet=sorted(set(pydocs)), show_progress=False
    )
    library.train_from_iterator([pydocs], trainer)
    merges = [tuple(pair) for pair in json.loads(library.to_str())["model"]["merges"]]
    assert BPETokenizer.train([pydocs], 1500, set(pydocs)).merges == merges


def test_training_gives_specials_characters_and_merges_in_order(pydocs):
    tokenizer = BPETokenizer.train([pydocs[:100_000], pydocs[100_000:]], 1000, set(pydocs))
    characters = sorted(set(pydocs))
    assert tokenizer.vocab_size == 1000
    assert tokenizer.vocab[: 2 + len(characters)] == [*SPECIALS, *characters]
    assert tokenizer.vocab[2 + len(characters) :] == [a + b for a, b in tokenizer.merges]
    ids = tokenizer.encode(pydocs[:20_000])
    assert tokenizer.decode(ids) == pydocs[:20_000] and len(ids) < 9_000
    assert_as_reference(tokenizer, pydocs[:5_000])
    assert ids.dtype == np.uint16


@pytest.mark.parametrize("size", [1, 5, 30])
def test_a_vocabulary_smaller_than_its_alphabet_is_refused(size):
    with pytest.raises(UserError, match="28 ids before the first merge"):
        BPETokenizer.train(["abc"], min(size, 28), set("abcdefghijklmnopqrstuvwxyz"))


# -- GPT-2's --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bytewise(pydocs):
    return ByteBPETokenizer.train([pydocs], 600, set(pydocs))


def test_bytes_know_every_string(bytewise, monkeypatch):
    monkeypatch.setattr(bpe, "CHUNK", 5)
    for text in NASTY:
        text = text.encode("utf-8", "replace").decode()
        assert bytewise.decode(bytewise.encode(text)) == text
    assert bytewise.token_bytes()[bytewise.encode("日本")].sum() == 6
    assert (bytewise.bos_id, bytewise.eos_id, bytewise.vocab_size) == (0, 1, 600)


def test_cutting_a_text_changes_no_token(bytewise, public, pydocs, monkeypatch):
    text = pydocs[:30_000] + " \n\n  x \t\n" * 20
    whole = [t.encode(text, Counter()).tolist() for t in (bytewise, public)]
    monkeypatch.setattr(bpe, "CHUNK", 11)
    assert [t.encode(text, Counter()).tolist() for t in (bytewise, public)] == whole


def test_ids_are_the_librarys_own(bytewise, public, pydocs):
    text = pydocs[:20_000]
    for tokenizer in (bytewise, public):
        plain = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        ids = tokenizer.encode(text, Counter()).tolist()
        assert plain.encode(text, add_special_tokens=False).ids == ids
        assert plain.decode(ids) == tokenizer.decode(ids)


def gpt2_like(bytewise):
    """The form of GPT-2's own file: one special, <|endoftext|>, as its last id."""
    data = json.loads(bytewise.to_json())
    vocab = {s: i - 2 for s, i in data["model"]["vocab"].items() if s not in SPECIALS}
    vocab["<|endoftext|>"] = len(vocab)
    data["model"]["vocab"] = vocab
    data["added_tokens"] = [data["added_tokens"][0] | {"id": len(vocab) - 1, "content": "<|endoftext|>"}]
    data["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return json.dumps(data)


def test_gpt2s_file_is_read(bytewise, tmp_path):
    (tmp_path / "tokenizer.json").write_text(gpt2_like(bytewise))
    tokenizer = open_vocab(tmp_path / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (598, 598, 599)
    text = "Hello world<|endoftext|> ♥"
    assert 598 not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer_from_dict(tokenizer.to_dict()).encode(text).tolist() == tokenizer.encode(text).tolist()


# -- files ----------------------------------------------------------------------------------------------------------


def test_our_tokenizer_json_comes_back(public, tmp_path):
    (tmp_path / "tokenizer.json").write_text(public.to_json())
    again = open_vocab(tmp_path / "tokenizer.json")
    assert (again.vocab, again.merges) == (public.vocab, public.merges)


BAD = [
    ("", "JSON"),
    ("{", "JSON"),
    ("[]", "neither"),
    ("{}", "neither"),
    ('{"vocab": {}, "merges": []}', "vocab is not a list"),
    ('{"vocab": ["a"], "merges": []}', "vocab is not a list of two"),
    ('{"vocab": ["a", "b", 3], "merges": []}', "vocab is not a list"),
    ('{"vocab": ["a", "b", "c"], "merges": 3}', "merges are not"),
    ('{"vocab": ["a", "b", "c"], "merges": [["a"]]}', "merges are not"),
    ('{"vocab": ["a", "b", "c"], "merges": [["a", 2]]}', "merges are not"),
    ('{"model": {}}', "tokenizer.json"),
    ('{"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Split"}}', "not a vocabulary"),
    ('{"model": {"type": "WordLevel"}, "pre_tokenizer": null}', "tokenizer.json"),
]


@pytest.mark.parametrize("text, words", BAD)
def test_a_bad_vocabulary_is_named(tmp_path, text, words):
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(BadFile, match=f"v.json: .*{words}"):
        open_vocab(path)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    engine.save(str(tmp_path / "t.json"))
    with pytest.raises(BadFile, match="byte-level"):
        open_vocab(tmp_path / "t.json")
    with pytest.raises(UserError, match="no such file"):
        open_vocab(tmp_path / "absent.json")


@pytest.mark.parametrize("data", [{}, {"kind": "bpe"}, {"kind": "word"}, {"kind": "bpe", "vocab": 3, "merges": []}])
def test_a_bad_tokenizer_in_a_checkpoint_is_named(data):
    with pytest.raises(BadFile, match="tokenizer"):
        tokenizer_from_dict(data)
