"""Names, files, folders and patterns to documents: what is found, refused, downloaded and cleaned."""

import errno
import functools
import gzip
import hashlib
import http.server
import json
import re
import threading
import tracemalloc

import pooch
import pytest

from mlx_gpt.data import corpus as corpus_module
from mlx_gpt.data import library
from mlx_gpt.data.corpus import Corpus, Source, corpus_name, list_corpora, open_corpus
from mlx_gpt.data.encoding import encode
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.errors import BadFile, OutOfRoom, UserError


def corpus_of(*documents):
    return Corpus("c", (Source("c", 1.0, sum(map(len, documents)), lambda: [[d] for d in documents]),))


def test_shakespeare_is_the_real_one(shakespeare):
    corpus = open_corpus([shakespeare])
    tokenizer = CharTokenizer.train(corpus.texts())
    assert (sum(map(len, corpus.documents)), tokenizer.vocab_size) == (1_115_394, 67)
    assert [len(t) for t in encode(corpus, tokenizer, print).split(0.1)] == [1_003_854, 111_540]


def test_a_file_of_any_size_in_place_of_a_named_corpus_is_not_read_into_memory(tmp_path, monkeypatch):
    with open(tmp_path / "shakespeare.txt", "wb") as file:
        file.truncate(64 << 20)
    monkeypatch.setenv("MLXGPT_CORPUS_DIR", str(tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match="shakespeare.txt has SHA-256 "):
            open_corpus(["shakespeare"])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_pydocs_and_stdlib_need_no_network(monkeypatch):
    monkeypatch.setenv("MLXGPT_CORPUS_DIR", "/nonexistent")
    pydocs, stdlib = open_corpus(["pydocs"]), open_corpus(["stdlib"])
    assert len(pydocs.documents) > 50 and sum(map(len, pydocs.documents)) > 400_000
    assert len(stdlib.documents) > 400 and sum(map(len, stdlib.documents)) > 8_000_000
    assert open_corpus(["pydocs"]).fingerprint == pydocs.fingerprint != stdlib.fingerprint


def test_corpora_are_listed_with_license_and_state(shakespeare):
    rows = {row["name"]: row for row in list_corpora()}
    assert set(rows) == {"shakespeare", "gutenberg-shakespeare", "pydocs", "stdlib"}
    assert all(row["license"] and row["bytes"] > 400_000 and row["state"] for row in rows.values())
    assert not rows["shakespeare"]["network"]


def test_a_missing_download_says_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("MLXGPT_CORPUS_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(library, "cache_dir", lambda: tmp_path / "cache")
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
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    manifest = {
        "file": "letters.txt",
        "size": 4,
        "sha256": hashlib.sha256(b"abcd").hexdigest(),
        "url": f"http://127.0.0.1:{server.server_port}/letters.txt",
    }
    monkeypatch.setattr(library, "manifest", lambda name: manifest)
    monkeypatch.setattr(library, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.delenv("MLXGPT_CORPUS_DIR", raising=False)
    yield tmp_path / "web/letters.txt", manifest
    server.shutdown()
    server.server_close()


def test_a_corpus_is_downloaded_once_into_the_cache(served, tmp_path):
    served[0].write_text("abcd")
    assert open_corpus(["shakespeare"]).documents == ["abcd"]
    served[0].unlink()
    assert open_corpus(["shakespeare"]).documents == ["abcd"]
    assert [p.name for p in (tmp_path / "cache/corpus").glob("*.*")] == ["letters.txt"]


def test_a_download_of_something_else_is_refused_and_not_kept(served, tmp_path):
    served[0].write_text("<html>")
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
        list(open_corpus([str(path)]).texts())
    assert all(word in str(error.value) for word in [str(path), *words])


def test_a_division_counts_the_documents_of_each_source():
    texts = [["ab", "c<|eos|>d", ""], [""], ["e"]]
    corpus = Corpus("c", tuple(Source("s", 1.0, 9, lambda t=t: [[document] for document in t]) for t in texts))
    assert corpus.division == [3, 0, 1]


def test_fingerprints_see_document_borders():
    prints = {corpus_of(*d).fingerprint for d in (["ab", "c"], ["a", "bc"], ["abc"], ["ab<|eos|>", "c", ""])}
    assert len(prints) == 3


BOOKS = {
    "old": "\ufeffEtext of A\r\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\r\n\r\n"
    "This etext was prepared by the PG Shakespeare Team,\r\na team of volunteers.\r\n\r\n"
    "A, line 1  \r\n\r\n\r\n\r\nline 2\r\n\r\nThe End of Project Gutenberg Etext of A\r\n",
    "new": "Licence\r\n*** START OF THE PROJECT GUTENBERG EBOOK B ***\r\n*END THE SMALL PRINT! FOR EBOOKS*END*\r\n"
    "B, line 1\r\n\r\nThe end of love\r\n\r\n\r\n***END OF THE PROJECT GUTENBERG EBOOK B ***\r\nmore\r\n",
}
CLEAN = ["A, line 1\n\nline 2\n", "B, line 1\n\nThe end of love\n"]


@pytest.fixture
def books(served):
    """The corpus is made of two books."""
    path, manifest = served
    parts = {name: text.encode() for name, text in BOOKS.items()}
    for name, content in parts.items():
        path.with_name(name).write_bytes(content)
    manifest["url"] = manifest["url"].removesuffix("letters.txt")
    manifest["parts"] = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    manifest["sha256"] = hashlib.sha256("<|eos|>".join(CLEAN).encode()).hexdigest()
    manifest["clean"] = ["lines", "gutenberg"]
    return path.parent, manifest


def test_books_are_cleaned_of_what_surrounds_them_and_joined_as_documents(books, tmp_path):
    assert open_corpus(["shakespeare"]).documents == CLEAN
    for part in BOOKS:
        (books[0] / part).unlink()
    assert open_corpus(["shakespeare"]).documents == CLEAN


def test_a_download_that_broke_off_goes_on_with_what_is_missing(books):
    (books[0] / "new").rename(books[0] / "aside")
    with pytest.raises(
        UserError, match=r"failed \(HTTPError\); without a network put letters.txt of another machine's cache"
    ):
        open_corpus(["shakespeare"])
    (books[0] / "aside").rename(books[0] / "new")
    (books[0] / "old").unlink()
    assert open_corpus(["shakespeare"]).documents == CLEAN


def test_a_full_disk_is_not_taken_for_a_missing_network(books, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch, "retrieve", full)
    with pytest.raises(OutOfRoom, match="downloads: no space left on the disk"):
        open_corpus(["shakespeare"])


def test_a_cache_that_cannot_be_made_is_named(books, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cache/corpus/downloads: .*choose a folder you can write to"):
        open_corpus(["shakespeare"])


def test_a_part_that_is_something_else_is_named(books):
    (books[0] / "new").write_text("<html>moved</html>")
    with pytest.raises(BadFile, match="the download of http.*/new is not the file expected"):
        open_corpus(["shakespeare"])


def test_every_manifest_is_whole():
    for row in list_corpora():
        facts = library.manifest(row["name"])
        if row["state"] == "built in":
            assert set(facts) - {"size"} == {"title", "license", "source"}
            continue
        assert set(facts) - {"parts", "clean"} == {"title", "license", "file", "url", "size", "sha256"}
        assert all(step in library.CLEANING for step in facts.get("clean", []))
        for sha256 in [facts["sha256"], *facts.get("parts", {}).values()]:
            assert len(bytes.fromhex(sha256)) == 32
        assert all(re.search(r"/[0-9a-f]{40}/", part) for part in facts.get("parts", {})), "a part that can change"


def test_other_files_in_a_folder_are_left_out_and_told_of(tmp_path):
    for name in ("a.txt", "b.png", "c.PNG", "d", "e.MD"):
        (tmp_path / name).write_bytes(b"x" if name[0] in "ae" else b"\xff")
    corpus = open_corpus([str(tmp_path)])
    assert corpus.documents == ["x", "x"]
    assert len(corpus.notes) == 1 and "3 files left out" in corpus.notes[0] and ".png" in corpus.notes[0]


def test_patterns_and_weights(tmp_path):
    for name in ("a.txt", "b.txt", "sub/c.txt", "odd:2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name.rpartition("/")[2][0])
    corpus = open_corpus([f"{tmp_path}/*.txt:0.5", f"{tmp_path}/**/c.txt", f"{tmp_path}/odd:2"])
    assert [source.weight for source in corpus.sources] == [0.5, 1.0, 1.0]
    assert corpus.documents == ["a", "b", "c", "o"]
    for nameless in (":2", " :1"):  # not the present folder
        with pytest.raises(UserError, match="has no name; give a name or a path before the weight"):
            open_corpus([nameless])
    with pytest.raises(UserError, match="matches no file"):
        open_corpus([f"{tmp_path}/*.csv"])
    for weight in ("0", "-1", "inf", "nan"):
        with pytest.raises(UserError, match="above 0"):
            open_corpus([f"pydocs:{weight}"])
    with pytest.raises(UserError, match="pydocs:2"):
        open_corpus(["pydocs", "pydocs:3"])


@pytest.mark.parametrize(
    "specs, name",
    [
        (["shakespeare:2"], "shakespeare"),
        (["notes/a.b.txt", "pydocs"], "a.b-and-1"),
        (["books/*.txt"], "txt"),
        (["markov:2"], "markov-2"),
    ],
)
def test_a_run_folder_is_named_after_its_first_corpus(specs, name):
    assert corpus_name(specs) == name


@pytest.mark.parametrize("suffix, opened", [(".jsonl", open), (".jsonl.gz", gzip.open)])
def test_each_line_of_json_is_a_document(tmp_path, suffix, opened):
    path = tmp_path / f"texts{suffix}"
    texts = ["one\nline", "", "zwei \u2028 \U0001f600", "lone \udc80"]
    with opened(path, "wt", encoding="utf-8") as file:
        file.write("\n\n".join(json.dumps({"text": text, "id": 3}) for text in texts))
    assert open_corpus([str(path)]).documents == [texts[0], texts[2], "lone ?"]


@pytest.mark.parametrize("line", ["{", "[]", '{"txt": "a"}', '{"text": 3}', "\xff"])
def test_a_bad_line_of_json_is_named(tmp_path, line):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(BadFile, match="texts.jsonl: line 2"):
        list(open_corpus([str(path)]).texts())


@pytest.mark.parametrize("piece", [3, 10, 1000])
def test_text_is_read_in_pieces_and_cut_at_eos(tmp_path, piece, monkeypatch):
    """However small the pieces: the same documents, none empty, no character or mark torn, cuts between lines."""
    monkeypatch.setattr(corpus_module, "PIECE", piece)
    documents = ["été\n\n ünd\nso", "<|eos|", "a\n" * 40, "\n\n", "naïve"]
    path = tmp_path / "a.txt"
    path.write_text("<|eos|>" + "<|eos|>".join(documents) + "<|eos|><|eos|>")
    corpus = open_corpus([str(path)])
    assert corpus.documents == documents
    for text, ends in corpus.sources[0].pieces():
        assert ends or (text and not text[-1].isspace())
    assert any(not ends for _, ends in corpus.sources[0].pieces()) == (piece < 40)


def test_the_byte_that_is_no_text_is_named_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "PIECE", 8)
    path = tmp_path / "bad.txt"
    for before in range(0, 30):
        path.write_bytes("é".encode() * (before // 2) + b"x" * (before % 2) + b"\xff tail")
        with pytest.raises(BadFile, match=f"byte {before} is 0xff"):
            list(open_corpus([str(path)]).texts())
    path.write_bytes(b"abc" + "é".encode()[:1])
    with pytest.raises(BadFile, match="byte 3 is 0xc3"):
        list(open_corpus([str(path)]).texts())


def test_a_long_line_is_cut_and_its_memory_bounded(tmp_path, monkeypatch):
    """Between words if there are any, and never through the mark of a document's end."""
    monkeypatch.setattr(corpus_module, "PIECE", 10)
    monkeypatch.setattr(corpus_module, "MAX_LINE", 40)
    path = tmp_path / "long.txt"
    for text in ("x" * 500, "some words " * 50, " " * 300, "y" * 77 + "<|eos|>" + "z" * 100, "ab<|eos|>" * 30):
        path.write_text(text)
        corpus = open_corpus([str(path)])
        pieces = list(corpus.sources[0].pieces())
        assert corpus.documents == [document for document in text.split("<|eos|>") if document]
        assert max(len(piece.text) for piece in pieces) <= 40 + 10
        if "words" in text:
            assert all(ends or piece.endswith(("some", "words")) for piece, ends in pieces)


def test_folders_and_patterns_of_source_files_are_corpora(tmp_path):
    """Each file is a document. A pattern may also name files that a folder leaves out."""
    texts = {
        "src/main.rs": "fn main() {}\n",
        "src/deep/lib.rs": "pub fn f() {}\n",
        "src/a.py": "x = 1\n",
        "b.c": "int y;\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert open_corpus([str(tmp_path)]).documents == [texts[n] for n in ("src/a.py", "src/deep/lib.rs", "src/main.rs")]
    for pattern, names in {
        "src/*.rs": ["src/main.rs"],
        "**/*.rs:2": ["src/deep/lib.rs", "src/main.rs"],
        "src/*.[pr]*": ["src/a.py", "src/main.rs"],
        "*.c": ["b.c"],
    }.items():
        assert open_corpus([f"{tmp_path}/{pattern}"]).documents == [texts[name] for name in names]
