"""Fill-in-the-middle: undoing it gives the windows back, and text never has its special tokens."""

import numpy as np
import pytest
import tokenizers

from mlx_gpt.config.schema import DataConfig
from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer, tokenizer_json
from mlx_gpt.data.corpus import Corpus, Source
from mlx_gpt.data.encoding import make_tokenizer
from mlx_gpt.data.fim import ADDED, FillInTheMiddle
from mlx_gpt.data.tokenizer import FIM, CharTokenizer
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.vocabularies import open_vocab, tokenizer_from_dict
from mlx_gpt.data.windows import Windows
from mlx_gpt.errors import UserError
from mlx_gpt.formats.gguf_tokenizer import read_tokenizer, to_metadata

TEXT = "def area(width):\n    return width * 2\n" * 9 + "".join(FIM) + "<|eos|>"
KINDS = {
    "char": CharTokenizer.train([TEXT]),
    "bpe": BPETokenizer.train([TEXT], 60, set(TEXT)),
    "byte-bpe": ByteBPETokenizer.train([TEXT], 280, set()),
}
LETTERS = CharTokenizer("abcdefghij", fim=True)
T = 12


def windows(lengths=(40, 9, 13, 2, 12, 30)):
    """Windows over documents of these lengths. Each ends with EOS."""
    draw = np.random.default_rng(0)
    documents = [[*draw.integers(2, 12, n - 1).tolist(), LETTERS.eos_id] for n in lengths]
    return Windows(Tokens.of(np.array(sum(documents, []), np.uint8), lengths), T, on_device=False)


def undone(ids):
    """The text of a rearranged window: prefix, middle, suffix."""
    before, after, between = (ids.index(i) for i in LETTERS.fim_ids)
    assert before == 0 and ids[-1] == LETTERS.eos_id and LETTERS.eos_id not in ids[:-1]
    return ids[1:after] + ids[between + 1 : -1] + ids[after + 1 : between]


def test_undoing_it_gives_the_text_of_the_window_back():
    """Every window: as it was, or rearranged, with all of its tokens unless it would get too long."""
    source, fim, count, cuts = windows(), FillInTheMiddle(0.5, LETTERS, seed=3), 0, set()
    for step in range(200):
        chosen = source.shuffled(0, 8 * step, 8)
        ids, starts, ends = source.read(chosen)
        new, new_starts, new_ends = fim(step, ids, starts, ends)
        assert new.shape == ids.shape and new.dtype == ids.dtype and np.array_equal(new_starts, starts)
        assert np.array_equal(source.read(chosen)[0], ids)
        for row in range(8):
            if new[row, 0] != LETTERS.fim_ids[0]:
                assert np.array_equal(new[row], ids[row]) and new_ends[row] == ends[row]
                continue
            old = ids[row, : ends[row] - starts[row]].tolist()
            old = old[:-1] if old[-1] == LETTERS.eos_id else old
            made = new[row, : new_ends[row] - new_starts[row]].tolist()
            assert undone(made) == old[: T + 1 - ADDED]
            count += 1
            cuts.add((made.index(LETTERS.fim_ids[1]), made.index(LETTERS.fim_ids[2])))
    assert 0.45 < count / 1600 < 0.55
    # All borders of a full window are drawn: 0 to 9 tokens of prefix, and as many of suffix as are left.
    assert {(p, q) for p in range(1, 11) for q in range(p + 1, 12)} <= cuts


def test_the_targets_of_a_rearranged_window_end_with_eos():
    source, fim = windows(), FillInTheMiddle(1.0, LETTERS, seed=0)
    arrays = fim(0, *source.read(source.shuffled(0, 0, 8)))
    batch = source.batch(source.shuffled(0, 0, 8))
    made = source.gather(*map(type(batch.mask), arrays))
    for inputs, targets, mask in zip(*(np.array(part) for part in made), strict=True):
        used = int(mask.sum())
        assert inputs[0] == LETTERS.fim_ids[0] and targets[used - 1] == LETTERS.eos_id and not mask[used:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_has_the_special_tokens(kind):
    """They get the next ids, encode and decode as before, and stay in every form of the tokenizer."""
    plain = KINDS[kind]
    made = plain.with_fim()
    assert plain.fim_ids is None and made.fim_ids == tuple(range(plain.vocab_size, plain.vocab_size + 3))
    for text in (TEXT, *FIM, "<|eos|>" + "".join(FIM) * 2):
        assert made.encode(text).tolist() == plain.encode(text).tolist()
        assert made.decode([*made.fim_ids, *made.encode(text).tolist()]) == text
    assert made.token_bytes()[list(made.fim_ids)].tolist() == [0, 0, 0]
    for again in (tokenizer_from_dict(made.to_dict()), read_tokenizer("a.gguf", to_metadata(made))):
        assert again.to_dict() == made.to_dict() and again.fim_ids == made.fim_ids
    assert "fim" not in plain.to_dict()


def test_a_merge_that_spells_a_special_token_is_text():
    text = f"{FIM[0]}\n" * 50
    plain = BPETokenizer.train([text], 60, set(text))
    made = plain.with_fim()
    assert FIM[0] in plain.vocab and made.encode(FIM[0]).tolist() == [plain.vocab.index(FIM[0])]
    assert made.decode(made.encode(text)) == text and not made.has_json()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_json_has_the_special_tokens(kind, tmp_path):
    made = KINDS[kind].with_fim()
    text = tokenizer_json(made)
    (tmp_path / "tokenizer.json").write_text(text)
    again, library = open_vocab(tmp_path / "tokenizer.json"), tokenizers.Tokenizer.from_str(text)
    assert type(again) is type(made) and again.fim_ids == made.fim_ids
    assert again.encode(TEXT).tolist() == made.encode(TEXT).tolist()
    assert library.get_vocab_size() == made.vocab_size
    assert [library.decode([i], skip_special_tokens=True) for i in made.fim_ids] == [""] * 3


def test_the_names_of_other_programs_are_found(tmp_path):
    engine = tokenizers.Tokenizer.from_str(KINDS["byte-bpe"].to_json())
    names = ["<fim_prefix>", "<fim_middle>", "<fim_suffix>"]
    engine.add_special_tokens(names)
    engine.save(str(tmp_path / "tokenizer.json"))
    ids = open_vocab(tmp_path / "tokenizer.json").fim_ids
    assert ids == tuple(engine.token_to_id(f"<fim_{part}>") for part in ("prefix", "suffix", "middle"))


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_rate_above_0_adds_tokens(kind):
    corpus, told = Corpus("c", (Source("c", 1.0, len(TEXT), lambda: [[TEXT]]),)), []
    plain = make_tokenizer(corpus, DataConfig(tokenizer=kind, vocab_size=280), told.append)
    before = len(told)
    assert make_tokenizer(corpus, DataConfig(tokenizer=kind, vocab_size=280, fim_rate=0.0), print).to_dict() == (
        plain.to_dict()
    )
    made = make_tokenizer(corpus, DataConfig(tokenizer=kind, vocab_size=280, fim_rate=0.1), told.append)
    assert made.to_dict() == plain.with_fim().to_dict()
    assert "three special tokens" in told[-1] and len(told) == 2 * before + 1
    with pytest.raises(UserError, match="fim_rate=0.1: the tokenizer has no special tokens for fill-in-the-middle"):
        FillInTheMiddle(0.1, plain, 0)
