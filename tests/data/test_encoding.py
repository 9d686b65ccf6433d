"""Text to token files: streamed, resumed, checked."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from constants import ROOT

from mlx_gpt.config.schema import DataConfig
from mlx_gpt.data import corpus as corpus_module
from mlx_gpt.data import encoding, tokenfile
from mlx_gpt.data.corpus import Corpus, Source, open_corpus
from mlx_gpt.data.encoding import encode, make_tokenizer
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.errors import BadFile, UserError


def corpus_of(*documents, weights=None):
    """Each document a source of its own where weights are given."""
    streams = [[d[i : i + 25] for i in range(0, len(d), 25)] for d in documents]
    sources = [Source("c", 1.0, sum(map(len, documents)), lambda: streams)]
    if weights:
        sources = [Source(d, w, len(d), lambda d=d: [[d]]) for d, w in zip(documents, weights, strict=True)]
    return Corpus("c", tuple(sources))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Every corpus is large, every piece small, and the state saved often; the user's cache."""
    monkeypatch.setattr(encoding, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(encoding, "MAPPED_BYTES", 0)
    monkeypatch.setattr(tokenfile, "SAVE_TOKENS", 50)
    monkeypatch.setattr(tokenfile, "BLOCK", 64)
    monkeypatch.setattr(corpus_module, "PIECE", 40)
    return tmp_path / "cache/tokens"


TEXTS = ["the quick brown fox\njumps over\n" * 20, "é", "the lazy dog\n" * 30]


def assert_same(a, b):
    for x, y in ((a.ids.host, b.ids.host), (a.begins, b.begins), (a.lengths, b.lengths), (a.sources, b.sources)):
        assert np.array_equal(x, y) and x.dtype == y.dtype
    assert a.weights == b.weights


@pytest.mark.parametrize("kind", ["char", "bpe", "byte-bpe"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]])
def test_ids_from_a_file_are_those_in_memory(kept, monkeypatch, kind, texts):
    corpus, told = corpus_of(*texts), []
    tokenizer = make_tokenizer(corpus, DataConfig(tokenizer=kind, vocab_size=300), told.append)
    first, again = encode(corpus, tokenizer, told.append), encode(corpus, tokenizer, told.append)
    assert isinstance(first.ids.host, np.memmap) and sum("of text are encoded to" in text for text in told) == 1
    monkeypatch.setattr(encoding, "MAPPED_BYTES", 1 << 40)
    plain = encode(corpus, tokenizer, told.append)
    assert_same(first, plain)
    assert_same(again, plain)
    assert {p.suffix for p in kept.iterdir()} == {".tokens", ".lock"}


def test_another_text_or_tokenizer_is_another_file(kept):
    for corpus, characters in (
        (corpus_of("ab" * 50), "ab"),
        (corpus_of("ab" * 51), "ab"),
        (corpus_of("ab" * 50), "abc"),
    ):
        encode(corpus, CharTokenizer(characters), print)
    assert len(list(kept.glob("*.tokens"))) == 3


def test_other_sources_of_the_same_documents_are_another_file(kept, monkeypatch):
    """The file holds the source of each document, which decides the split for validation and the weights."""

    def divided(*counts):
        parts = [[["ab" * 9 + "\n"]] * count for count in counts]
        return Corpus("c", tuple(Source(f"s{i}", i + 1.0, 60, lambda part=part: part) for i, part in enumerate(parts)))

    corpora = [divided(5), divided(2, 3), divided(3, 2), divided(1, 2, 2)]
    assert len({corpus.fingerprint for corpus in corpora}) == 1
    tokenizer = CharTokenizer("\nab")
    found = [encode(corpus, tokenizer, print) for corpus in corpora * 2]
    assert len(list(kept.glob("*.tokens"))) == 4
    monkeypatch.setattr(encoding, "MAPPED_BYTES", 1 << 40)
    for tokens, corpus in zip(found, corpora * 2, strict=True):
        assert_same(tokens, encode(corpus, tokenizer, print))


class Stopping(CharTokenizer):
    """Is interrupted after `stop` pieces of text."""

    def __init__(self, characters, stop):
        super().__init__(characters)
        self.stop, self.encoded = stop, 0

    def encode(self, *rest):
        if self.encoded == self.stop:
            raise KeyboardInterrupt
        self.encoded += 1
        return super().encode(*rest)


def test_an_interrupted_encoding_goes_on(kept):
    """Stopped at each piece in turn, by an error or with half a write, it ends with the same file."""
    corpus = corpus_of(*TEXTS)
    tokenizer = CharTokenizer.train(corpus.texts())
    encode(corpus, tokenizer, print)
    whole = next(kept.glob("*.tokens"))
    expected = whole.read_bytes()
    pieces = sum(1 for _ in corpus.sources[0].pieces())
    assert pieces > 10
    for stop in range(1, pieces, 3):
        whole.unlink()
        with pytest.raises(KeyboardInterrupt):
            encode(corpus, Stopping(tokenizer.characters, stop), print)
        with open(next(kept.glob("*.part")), "ab") as file:
            file.write(b"torn")
        counting, told = Stopping(tokenizer.characters, pieces), []
        encode(corpus, counting, told.append)
        assert whole.read_bytes() == expected
        skipped = pieces - counting.encoded
        assert any("resuming its encoding" in text for text in told) == (skipped > 0)
        assert skipped <= stop and (stop < 5 or skipped > 0)


@pytest.fixture
def stopped(kept):
    """A text and its tokenizer, its whole token file, and an interrupted encoding. The ids take two bytes each."""
    corpus = corpus_of(*TEXTS)
    tokenizer = CharTokenizer("".join(sorted({*"".join(TEXTS), *map(chr, range(256, 600))})))
    encode(corpus, tokenizer, print)
    path = next(kept.glob("*.tokens"))
    expected = path.read_bytes()
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        encode(corpus, Stopping(tokenizer.characters, 10), print)
    return corpus, tokenizer, path, expected


def torn(part, saved):
    """A byte of the last id that the state counts is missing."""
    count = json.loads(saved.read_text())["count"]
    with open(part, "r+b") as file:
        file.truncate(tokenfile.HEADER.size + 2 * count - 1)


def changed(part, saved):
    """A bit of an id that the state counts differs."""
    flip(part, tokenfile.HEADER.size + 3)


def miscounted(part, saved):
    """The state counts a piece less."""
    facts = json.loads(saved.read_text())
    saved.write_text(json.dumps(facts | {"pieces": facts["pieces"] - 1}))


@pytest.mark.parametrize(
    "damage, words",
    [
        (torn, ".part: the token file is damaged: block"),
        (changed, ".part: the token file is damaged: block 0 of its ids"),
        (miscounted, ".json: damaged, or written by another version"),
        (lambda part, saved: part.unlink(), ".part: is missing"),
        (lambda part, saved: saved.write_bytes(b"{}"), ".json: damaged, or written by another version"),
    ],
)
def test_a_damaged_interrupted_encoding_starts_again(stopped, damage, words):
    corpus, tokenizer, path, expected = stopped
    damage(path.with_suffix(".tokens.part"), path.with_suffix(".tokens.json"))
    told = []
    encode(corpus, tokenizer, told.append)
    assert path.read_bytes() == expected and not any("resuming" in text for text in told)
    assert words in told[0] and told[0].endswith("the interrupted encoding starts again")


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_in_a_token_file_is_noticed(kept):
    """The text is encoded again, and one line says why."""
    corpus = corpus_of(*TEXTS)
    tokenizer = CharTokenizer.train(corpus.texts())
    encode(corpus, tokenizer, print)
    path = next(kept.glob("*.tokens"))
    good, told = path.read_bytes(), []
    every = {0, 20, 31, 95, 100, 127, 128, 191, 192, len(good) // 2, *range(len(good) - 90, len(good))}
    for place in every:
        flip(path, place)
        encode(corpus, tokenizer, told.append)
        assert path.read_bytes() == good, place
    reasons = [text for text in told if text.endswith("; the text is encoded again")]
    assert len(reasons) == len(every) and all(str(path) in text and "\n" not in text for text in reasons)


def test_blocks_of_a_token_file_that_changed_places_are_noticed(kept):
    corpus, told = corpus_of(*TEXTS), []
    tokenizer = CharTokenizer.train(corpus.texts())
    encode(corpus, tokenizer, print)
    path = next(kept.glob("*.tokens"))
    good = path.read_bytes()
    first, block = tokenfile.HEADER.size, tokenfile.BLOCK
    one, two = good[first : first + block], good[first + block : first + 2 * block]
    path.write_bytes(good[:first] + two + one + good[first + 2 * block :])
    encode(corpus, tokenizer, told.append)
    assert one != two and path.read_bytes() == good
    assert "block 0 of its ids does not match its checksum; the text is encoded again" in told[0]


def test_a_token_file_that_is_damaged_when_it_was_just_written_is_an_error(kept, monkeypatch):
    finish = tokenfile.Writer.finish

    def fail(writer):
        finish(writer)
        flip(next(kept.glob("*.tokens")), 200)

    monkeypatch.setattr(tokenfile.Writer, "finish", fail)
    with pytest.raises(BadFile, match="block 1 of its ids .* just written; move the cache with XDG_CACHE_HOME"):
        encode(corpus_of(*TEXTS), CharTokenizer.train(corpus_of(*TEXTS).texts()), print)


def test_a_damaged_file_is_made_anew(kept):
    corpus, told = corpus_of(*TEXTS), []
    tokenizer = CharTokenizer.train(corpus.texts())
    plain = encode(corpus, tokenizer, print)
    plain = Tokens.of(np.array(plain.ids.host), plain.lengths, plain.sources)  # off the file that is to be damaged
    path = next(kept.glob("*.tokens"))
    good = path.read_bytes()
    bads = [b"", good[:50], good[:-1], good[:200], b"X" + good[1:], good[:8] + b"\1" + good[9:], good + b" "]
    for bad in bads:
        path.write_bytes(bad)
        assert_same(encode(corpus, tokenizer, told.append), plain)
        assert path.read_bytes() == good
    assert sum("; the text is encoded again" in text for text in told) == len(bads)


def test_temporary_files_of_processes_that_were_killed_are_removed(kept):
    """A process that is killed while it saves its progress leaves one."""
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    kept.mkdir(parents=True)
    left, used = kept / f".a.json.tmp-{dead.pid}", kept / f".a.json.tmp-{os.getpid()}"
    left.touch()
    used.touch()
    encode(corpus_of("ab" * 50), CharTokenizer("ab"), print)
    assert used.exists() and not left.exists()


def test_two_processes_make_one_file(kept, tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 20_000)
    code = (
        "import sys, time; from pathlib import Path; from mlx_gpt.data import encoding as e; "
        "from mlx_gpt.data.corpus import open_corpus; from mlx_gpt.data.tokenizer import CharTokenizer; "
        "e.MAPPED_BYTES = 0; e.cache_dir = lambda: Path(sys.argv[1]); c = open_corpus([sys.argv[2]]); "
        "t = e.encode(c, CharTokenizer.train(c.texts()), lambda s: print(s, flush=True)); "
        "print(len(t), t.ids.host.sum())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), str(tmp_path / "text.txt")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    told = [p.communicate()[0].splitlines() for p in both]
    assert [p.returncode for p in both] == [0, 0] and told[0][-1] == told[1][-1]
    assert sum("of text are encoded to" in line for lines in told for line in lines) == 1


def test_unknown_characters_are_told_of_or_refused(kept, monkeypatch):
    corpus, told = corpus_of("abc abd", "xé"), []
    tokens = encode(corpus, CharTokenizer(" abc"), told.append)
    assert tokens.ids.host.tolist() == [3, 4, 5, 2, 3, 4]  # the second document has no token, so no EOS
    assert any("'d' (U+0064), 'x' (U+0078), 'é' (U+00E9) are not in the vocabulary: 3 characters" in t for t in told)
    with pytest.raises(UserError, match="are not in the vocabulary; use another text"):
        encode(corpus, CharTokenizer(" abc"), told.append, refuse_unknown=True)
    with pytest.raises(UserError, match="is not in the vocabulary; use another text"):
        encode(corpus_of("xxx"), CharTokenizer("abc"), told.append)


def test_a_vocabulary_is_made_from_text_or_read(tmp_path, vectors):
    corpus, told = open_corpus(["pydocs"]), []
    assert make_tokenizer(corpus, DataConfig(), told.append).kind == "char" and not told
    trained = make_tokenizer(corpus, DataConfig(tokenizer="bpe", vocab_size=500), told.append)
    assert (trained.kind, trained.vocab_size) == ("bpe", 500) and "vocabulary of 500" in told[0]
    (tmp_path / "tokenizer.json").write_text(trained.to_json())
    again = make_tokenizer(corpus, DataConfig(vocab=str(tmp_path / "tokenizer.json")), told.append)
    assert again.to_dict() == trained.to_dict()
    assert json.loads(json.dumps(again.to_dict())) == again.to_dict()
