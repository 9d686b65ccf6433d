"""Corpora, the character tokenizer, and the windows cut from token arrays."""

import functools
import hashlib
import http.server
import itertools
import random
import threading

import numpy as np
import pytest

from mlx_gpt import rng
from mlx_gpt.backend import mx
from mlx_gpt.data.corpus import Corpus, list_corpora, open_corpus
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.data.tokens import Tokens, Windows, encode
from mlx_gpt.errors import BadFile, UserError

NASTY = ["", "a", "\n", "\r\n\t\x00", "<>", "é́ü", "日本語", "👩‍👩‍👧", "\U0010ffff", "<|eos|>"]


# -- corpora --------------------------------------------------------------------------------------------------------


def test_shakespeare_is_the_real_one(shakespeare):
    corpus = open_corpus([shakespeare])
    tokenizer = CharTokenizer.train(corpus.documents)
    assert (sum(map(len, corpus.documents)), tokenizer.vocab_size) == (1_115_394, 67)
    assert [len(t) for t in encode(corpus, tokenizer).split(0.1)] == [1_003_854, 111_540]


def test_pydocs_and_stdlib_need_no_network(monkeypatch):
    monkeypatch.setenv("MLXGPT_CORPUS_DIR", "/nonexistent")
    pydocs, stdlib = open_corpus(["pydocs"]), open_corpus(["stdlib"])
    assert len(pydocs.documents) > 50 and sum(map(len, pydocs.documents)) > 400_000
    assert len(stdlib.documents) > 400 and sum(map(len, stdlib.documents)) > 8_000_000
    assert open_corpus(["pydocs"]).fingerprint() == pydocs.fingerprint() != stdlib.fingerprint()


def test_corpora_are_listed_with_licence_and_state(shakespeare):
    rows = {row["name"]: row for row in list_corpora()}
    assert set(rows) == {"shakespeare", "pydocs", "stdlib"}
    assert all(row["license"] and row["bytes"] > 400_000 and row["state"] for row in rows.values())
    assert not rows["shakespeare"]["network"]


def test_a_missing_download_says_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("MLXGPT_CORPUS_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("mlx_gpt.data.corpus.cache_dir", lambda: tmp_path / "cache")
    with pytest.raises(UserError) as error:
        open_corpus(["shakespeare"])
    for word in ("tinyshakespeare/input.txt", str(tmp_path / "cache"), "MLXGPT_CORPUS_DIR", "pydocs and stdlib"):
        assert word in str(error.value)


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A web server on this machine, a corpus `letters` that is downloaded from it, and the user's cache."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web")
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    manifest = {
        "file": "letters.txt",
        "size": 4,
        "sha256": hashlib.sha256(b"abcd").hexdigest(),
        "url": f"http://127.0.0.1:{server.server_port}/letters.txt",
    }
    monkeypatch.setattr("mlx_gpt.data.corpus._manifest", lambda name: manifest)
    monkeypatch.setattr("mlx_gpt.data.corpus.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.delenv("MLXGPT_CORPUS_DIR", raising=False)
    yield tmp_path / "web/letters.txt"
    server.shutdown()
    server.server_close()


def test_a_corpus_is_downloaded_once_into_the_cache(served, tmp_path):
    served.write_text("abcd")
    assert open_corpus(["shakespeare"]).documents == ["abcd"]
    served.unlink()
    assert open_corpus(["shakespeare"]).documents == ["abcd"]
    assert [p.name for p in (tmp_path / "cache/corpus").iterdir()] == ["letters.txt"]


def test_a_download_of_something_else_is_refused_and_not_kept(served, tmp_path):
    served.write_text("<html>")
    with pytest.raises(BadFile, match="not the file expected"):
        open_corpus(["shakespeare"])
    assert not list((tmp_path / "cache").rglob("*.txt"))


def test_a_file_with_another_checksum_is_refused(monkeypatch, tmp_path):
    (tmp_path / "shakespeare.txt").write_text("not it")
    monkeypatch.setenv("MLXGPT_CORPUS_DIR", str(tmp_path))
    with pytest.raises(BadFile, match="SHA-256"):
        open_corpus(["shakespeare"])


def test_a_corpus_folder_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MLXGPT_CORPUS_DIR", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="MLXGPT_CORPUS_DIR=.*absent: no such folder"):
        open_corpus(["shakespeare"])


def test_files_and_folders_become_documents_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in {
        "b.txt": "second",
        "a.md": "first",
        "sub/c.py": "third",
        ".hidden": "no",
        "empty.txt": "",
    }.items():
        (tmp_path / name).write_text(text)
    assert open_corpus([str(tmp_path)]).documents == ["first", "second", "third"]
    assert open_corpus([str(tmp_path / "b.txt"), str(tmp_path / "a.md")]).documents == ["second", "first"]


@pytest.mark.parametrize("content, words", [(b"ab\xffcd", ["byte 2", "0xff"]), (b"", ["empty"])])
def test_bad_text_is_named_by_file_and_byte(tmp_path, content, words):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(BadFile) as error:
        open_corpus([str(path)])
    assert all(word in str(error.value) for word in [str(path), *words])


def test_fingerprints_see_document_borders():
    one, two = (Corpus(name="c", documents=d) for d in (["ab", "c"], ["a", "bc"]))
    assert one.fingerprint() != two.fingerprint()


# -- tokenizer ------------------------------------------------------------------------------------------------------


def test_ids_are_bos_eos_then_sorted_code_points():
    tokenizer = CharTokenizer.from_documents(["ca", "b<"])
    assert tokenizer.encode("<abc").tolist() == [2, 3, 4, 5]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 6)
    assert tokenizer.decode([0, 3, 1, 4]) == "ab"


@pytest.mark.parametrize("text", NASTY)
def test_text_survives_the_round_trip(text):
    tokenizer = CharTokenizer.from_documents(NASTY)
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    again = CharTokenizer.from_dict(tokenizer.to_dict())
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.token_bytes()[tokenizer.encode(text).astype(int)].sum() == len(text.encode())


def test_unknown_characters_are_named():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\) is not in the vocabulary"):
        CharTokenizer("abc").encode("abé")
    with pytest.raises(UserError, match="and 1 more are not"):
        CharTokenizer("abc").encode("uvwxyz")


@pytest.mark.parametrize("characters, dtype", [(254, np.uint8), (255, np.uint16), (70_000, np.uint32)])
def test_ids_take_the_smallest_type(characters, dtype):
    points = [chr(i) for i in range(characters + 2048) if not 0xD800 <= i < 0xE000][:characters]
    assert CharTokenizer("".join(points)).encode(points[-1]).dtype == dtype


# -- windows --------------------------------------------------------------------------------------------------------


def documents_of(lengths, T):
    """Tokens whose value tells their document, so that a crossing shows."""
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.uint8)
    return Tokens(ids=ids, borders=np.cumsum([0, *lengths]))


def test_no_window_crosses_a_document_and_every_token_can_be_drawn():
    lengths, T = [40, 3, 8, 9, 2, 100, 1, 17], 8
    tokens = documents_of(lengths, T)
    windows = Windows(tokens, T)
    starts, ends = (np.array(a) for a in windows.draw(mx.array([1, 2], dtype=mx.uint32), 20_000))
    assert len(starts) == 20_000
    document = tokens.ids[starts]
    assert (ends == np.cumsum(lengths)[document]).all()
    drawn = np.zeros(len(tokens), bool)
    for s, e in zip(starts, ends, strict=True):
        drawn[s : min(s + T + 1, e)] = True
    assert drawn[tokens.ids != 6].all()  # document 6 has one token: nothing to predict

    batch = windows.gather(mx.array(starts), mx.array(ends))
    inputs, targets, mask = (np.array(a) for a in batch)
    assert (inputs[:, 0] == document).all()
    assert (targets == document[:, None])[mask == 1].all() and mask.sum() > 0


def test_the_starts_of_one_document_are_uniform():
    windows = Windows(documents_of([40], 8), 8)
    starts = np.array(windows.draw(mx.array([7, 7], dtype=mx.uint32), 32_000)[0])
    counts = np.bincount(starts, minlength=32)
    assert len(counts) == 32 and counts.min() > 850 and counts.max() < 1150  # 1000 +- 5 sigma


@pytest.mark.parametrize("seed", range(5))
def test_a_sweep_predicts_each_token_once(seed):
    draw = random.Random(seed)
    lengths, T = [draw.randint(1, 50) for _ in range(draw.randint(1, 12))] + [2], draw.randint(1, 16)
    borders = np.cumsum([0, *lengths])
    tokens = Tokens(ids=(np.arange(borders[-1]) % 251).astype(np.uint8), borders=borders)
    predicted = []
    for starts, ends in Windows(tokens, T).sweep(4):
        assert starts.shape == (4,)
        for s, e in zip(starts.tolist(), ends.tolist(), strict=True):
            predicted += range(s + 1, min(s + T + 1, e))
    assert sorted(predicted) == sorted(set(range(borders[-1])) - set(borders[:-1].tolist()))


def test_windows_depend_on_seed_stream_and_index_alone():
    windows = Windows(documents_of([500], 8), 8)

    def draw(*key):
        return windows.draw(rng.key(*key), 16)[0].tolist()

    assert draw(1, rng.WINDOWS, 5) == draw(1, rng.WINDOWS, 5)
    assert len({tuple(draw(*k)) for k in [(1, "a", 5), (2, "a", 5), (1, "b", 5), (1, "a", 6)]}) == 4


def test_documents_end_in_eos_and_the_split_cuts_by_tokens():
    corpus = Corpus(name="c", documents=["aaaa", "bbbbb"])
    tokens = encode(corpus, CharTokenizer("ab"))
    assert tokens.ids.tolist() == [2, 2, 2, 2, 1, 3, 3, 3, 3, 3, 1]
    train, val = tokens.split(0.4)
    assert train.borders.tolist() == [0, 5, 6] and val.borders.tolist() == [0, 5]
    assert train.ids.tolist() + val.ids.tolist() == tokens.ids.tolist()
    single = encode(Corpus(name="c", documents=["aaaa"]), CharTokenizer("ab"))
    assert single.ids.tolist() == [2, 2, 2, 2]


def epoch_of(windows, seed, epoch, size):
    """One epoch's windows, drawn in batches of `size` that don't divide it."""
    total = int(windows._parts.sum())
    batches = [windows.shuffled(seed, first, min(size, total - first % total)) for first in range(0, total, size)]
    starts, ends = (np.concatenate([np.array(b[i]) for b in batches]) for i in (0, 1))
    return starts[:total], ends[:total]


@pytest.mark.parametrize("seed", range(20))
def test_an_epoch_reads_every_document_once(seed):
    """As many windows as the tokens need, none across a border, and no place of a document left out but its edges."""
    draw = random.Random(seed)
    lengths, T = [draw.randint(1, 90) for _ in range(draw.randint(1, 9))] + [2], draw.randint(1, 16)
    tokens = documents_of(lengths, T)
    windows, borders = Windows(tokens, T), np.cumsum([0, *lengths])
    starts, ends = epoch_of(windows, seed, 0, 7)
    assert len(starts) == sum(max(-(-(n - T) // T), 1) for n in lengths if n > 1)
    for begin, end in itertools.pairwise(borders):
        own = np.sort(starts[(starts >= begin) & (starts < end)])
        if end - begin < 2:
            assert not len(own)
            continue
        assert (ends[(starts >= begin) & (starts < end)] == end).all()
        assert own[0] - begin < T and len(set(own)) == len(own)
        if end - begin > T:
            assert own[-1] + T < end and end - own[-1] <= 2 * T
            assert (np.diff(own) <= T).all()  # no gap between windows


def test_epochs_differ_and_every_start_is_as_likely():
    windows = Windows(documents_of([60], 8), 8)
    counts = np.bincount(
        np.concatenate([np.array(windows.shuffled(5, e * 7, 7)[0]) for e in range(4000)]), minlength=52
    )
    assert len(counts) == 52 and abs(counts / counts.mean() - 1).max() < 0.25  # 4 sigma of 538 draws is 0.17
    orders = {tuple(np.argsort(np.array(windows.shuffled(5, e * 7, 7)[0])).tolist()) for e in range(50)}
    assert len(orders) > 40


def test_a_batch_may_span_epochs_and_depends_on_its_place_alone():
    windows, again = (Windows(documents_of([60, 30], 8), 8) for _ in "ab")
    whole = np.array(windows.shuffled(3, 0, 100)[0])
    for first in (90, 13, 0, 50):
        np.testing.assert_array_equal(again.shuffled(3, first, 10)[0], whole[first : first + 10])
    assert not np.array_equal(again.shuffled(4, 0, 10)[0], whole[:10])
