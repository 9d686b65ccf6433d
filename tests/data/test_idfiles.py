"""Raw files of token ids become token files, and these are corpora."""

import tracemalloc

import numpy as np
import pytest

from mlx_gpt.config.schema import DataConfig
from mlx_gpt.data import idfiles
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.encoding import encode, import_ids, make_tokenizer
from mlx_gpt.data.stats import WINDOW, stats
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.errors import BadFile, UserError

LETTERS = CharTokenizer("abcdefghijklmnop")
EOS = LETTERS.eos_id


class Many(CharTokenizer):
    """LETTERS, and further ids that stand for no text."""

    vocab_size = 150_000


def raw(path, ids, dtype="uint16"):
    np.array(ids, idfiles.DTYPES[dtype]).tofile(path)
    return path


def drawn(count, high=16, seed=0):
    return np.random.default_rng(seed).integers(2, high, count).tolist()


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("chunk", [2, 8, 1 << 18])
def test_an_imported_file_has_the_ids_of_its_documents(tmp_path, monkeypatch, dtype, chunk):
    """Wherever the file is cut into chunks. Empty documents are left out."""
    monkeypatch.setattr(idfiles, "CHUNK", chunk)
    documents = [drawn(n, seed=n) for n in (7, 1, 2, 16, 33)]
    ids = [EOS] + [i for document in documents for i in [*document, EOS, *[EOS] * (len(document) == 2)]]
    out = tmp_path / "a.tokens"
    import_ids(raw(tmp_path / "a.bin", ids[:-1], dtype), dtype, LETTERS, out, print)
    pieces = list(idfiles.raw_ids(tmp_path / "a.bin", dtype, LETTERS).pieces())
    assert np.concatenate([piece for piece, _ in pieces]).tolist() == sum(documents, [])
    assert sum(ends for _, ends in pieces) == len(documents) and all(len(piece) <= chunk for piece, _ in pieces)
    for tokens in (encode(open_corpus([str(out)]), LETTERS, print), encode(open_corpus([f"{out}:2"]), LETTERS, print)):
        assert tokens.ids.host.tolist() == [i for document in documents for i in [*document, EOS]]
        assert tokens.lengths.tolist() == [len(document) + 1 for document in documents]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.tokens"]


def test_the_memory_of_an_import_is_bounded(tmp_path):
    """The ids of the file take 32 MB, and those of the token file 16 MB."""
    path = tmp_path / "a.bin"
    np.tile(np.array([*drawn(15_999), EOS], "<u2"), 1000).tofile(path)
    tracemalloc.start()
    try:
        made = import_ids(path, "uint16", LETTERS, tmp_path / "a.tokens", print)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(made.ids, np.memmap) and peak < 8 << 20


def test_an_import_leaves_other_files_alone(tmp_path):
    for name in ("a.json", "a.part", "a.lock"):
        (tmp_path / name).write_text("mine")
    import_ids(raw(tmp_path / "a.bin", drawn(9)), "uint16", LETTERS, tmp_path / "a.tokens", print)
    assert all((tmp_path / name).read_text() == "mine" for name in ("a.json", "a.part", "a.lock"))
    with pytest.raises(UserError, match=r"a.tokens: exists already; remove it"):
        import_ids(tmp_path / "a.bin", "uint16", LETTERS, tmp_path / "a.tokens", print)
    with pytest.raises(UserError, match=r"a.json: is not a name for a token file; give --out NAME.tokens"):
        import_ids(tmp_path / "a.bin", "uint16", LETTERS, tmp_path / "a.json", print)


def test_token_files_and_texts_are_one_corpus(tmp_path):
    import_ids(raw(tmp_path / "a.bin", LETTERS.encode("abc").tolist()), "uint16", LETTERS, tmp_path / "a.tokens", print)
    (tmp_path / "b.txt").write_text("def")
    corpus = open_corpus([str(tmp_path / "a.tokens"), str(tmp_path / "b.txt")])
    tokens = encode(corpus, LETTERS, print)
    assert LETTERS.decode(tokens.ids.host) == "abcdef" and tokens.sources.tolist() == [0, 1]
    assert corpus.division == [1, 1]
    with pytest.raises(UserError, match="a.tokens: holds token ids, not text; give the vocabulary"):
        make_tokenizer(corpus, DataConfig(), print)
    with pytest.raises(UserError, match="a.tokens: its ids are of another tokenizer"):
        encode(corpus, CharTokenizer("abcdef"), print)


@pytest.mark.parametrize("tokenizer, high", [(LETTERS, 18), (Many("ab"), 150_000)])
def test_uint32_read_as_uint16_is_noticed(tmp_path, tokenizer, high):
    path = raw(tmp_path / "a.bin", drawn(200, high), "uint32")
    with pytest.raises(UserError, match="every second id is .*; give --dtype uint32"):
        idfiles.raw_ids(path, "uint16", tokenizer)
    assert idfiles.raw_ids(path, "uint32", tokenizer).count == 200


@pytest.mark.parametrize("tokenizer, high", [(LETTERS, 18), (Many("ab"), 65_536)])
def test_uint16_read_as_uint32_is_noticed(tmp_path, tokenizer, high):
    path = raw(tmp_path / "a.bin", drawn(200, high))
    with pytest.raises(UserError, match="100 ids are not below .*; give --dtype uint16"):
        idfiles.raw_ids(path, "uint32", tokenizer)
    assert idfiles.raw_ids(path, "uint16", tokenizer).count == 200


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_an_id_outside_the_vocabulary_is_named_with_its_position(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(idfiles, "CHUNK", 16)
    ids = drawn(100)
    ids[77], ids[90] = 18, 300
    path = raw(tmp_path / "a.bin", ids, dtype)
    with pytest.raises(BadFile, match=r"the id 18 at position 77 is not in the vocabulary of 18 ids \(2 ids are not\)"):
        idfiles.raw_ids(path, dtype, LETTERS)


@pytest.mark.parametrize(
    "size, dtype, words", [(0, "uint16", "empty"), (7, "uint16", "7 bytes"), (6, "uint32", "uint16, or")]
)
def test_a_file_of_a_wrong_size_is_refused(tmp_path, size, dtype, words):
    (tmp_path / "a.bin").write_bytes(bytes(size))
    with pytest.raises(BadFile, match=words):
        idfiles.raw_ids(tmp_path / "a.bin", dtype, LETTERS)


def test_a_file_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        idfiles.raw_ids(tmp_path / "absent", "uint16", LETTERS)
    with pytest.raises(BadFile, match="folder or a special file"):
        idfiles.raw_ids(tmp_path, "uint16", LETTERS)
    for content in (b"x" * 50, b"x" * 500):
        (tmp_path / "a.tokens").write_bytes(content)
        with pytest.raises(BadFile, match="a.tokens: (the token file is damaged|not a token file)"):
            open_corpus([str(tmp_path / "a.tokens")])


def test_the_statistics_of_ids_are_those_of_their_definition(tmp_path):
    twice, once = drawn(3 * WINDOW, 10, seed=1), drawn(2 * WINDOW + 5, 10, seed=2)
    documents = [twice, once, twice, once[:WINDOW] + [17], [5]]
    ids = [i for document in documents for i in [*document, EOS]]
    import_ids(raw(tmp_path / "a.bin", ids), "uint16", LETTERS, tmp_path / "a.tokens", print)
    corpus = open_corpus([str(tmp_path / "a.tokens")])
    facts = stats(corpus, LETTERS, encode(corpus, LETTERS, print), 0.1)
    assert facts["tokens"] == len(ids) and facts["documents"] == 5
    assert facts["unused"] == 18 - len(set(ids))
    assert (facts["duplicate_documents"], facts["windows"], facts["duplicate_windows"]) == (1, 9, 4)
    lengths = sorted(len(document) + 1 for document in documents)
    assert facts["lengths"] == {
        "min": lengths[0],
        "median": lengths[2],
        "max": lengths[-1],
        "longest_tenth": round(lengths[-1] / len(ids), 5),
    }
    text = "|".join(LETTERS.decode(document) for document in documents)
    assert len(facts["passages"]) == 3 and all(passage in text for passage in facts["passages"])
    other = stats(corpus, LETTERS, encode(corpus, LETTERS, print), 0.1, seed=1)["passages"]
    assert other != facts["passages"] == stats(corpus, LETTERS, encode(corpus, LETTERS, print), 0.1)["passages"]
