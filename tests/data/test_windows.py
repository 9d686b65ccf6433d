"""Windows: draws, epochs, documents and weights; batches on the device and from memory."""

import itertools
import random

import numpy as np
import pytest

from mlx_gpt import rng
from mlx_gpt.data.corpus import Corpus, Source
from mlx_gpt.data.encoding import encode
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.mlx import mx


def corpus_of(*documents, weights=None):
    """Each document a source of its own where weights are given."""
    streams = [[d[i : i + 25] for i in range(0, len(d), 25)] for d in documents]
    sources = [Source("c", 1.0, sum(map(len, documents)), lambda: streams)]
    if weights:
        sources = [Source(d, w, len(d), lambda d=d: [[d]]) for d, w in zip(documents, weights, strict=True)]
    return Corpus("c", tuple(sources))


def documents_of(lengths, T):
    """Tokens whose value tells their document, so that a crossing shows."""
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.uint8)
    return Tokens.of(ids, lengths)


def test_no_window_crosses_a_document_and_every_token_can_be_drawn():
    lengths, T = [40, 3, 8, 9, 2, 100, 1, 17], 8
    tokens = documents_of(lengths, T)
    windows = Windows(tokens, T)
    starts, ends = windows.draw(1, "s", 2, 20_000)
    assert len(starts) == 20_000
    document = tokens.ids.host[starts]
    assert (ends == np.cumsum(lengths)[document]).all()
    drawn = np.zeros(len(tokens), bool)
    for s, e in zip(starts, ends, strict=True):
        drawn[s : min(s + T + 1, e)] = True
    assert drawn[tokens.ids.host != 6].all()  # document 6 has one token: nothing to predict

    batch = windows.batch(np.stack([starts, ends]))
    inputs, targets, mask = (np.array(a) for a in batch)
    assert (inputs[:, 0] == document).all()
    assert (targets == document[:, None])[mask == 1].all() and mask.sum() > 0


def test_the_starts_of_one_document_are_uniform():
    windows = Windows(documents_of([40], 8), 8)
    starts = windows.draw(7, "s", 7, 32_000)[0]
    counts = np.bincount(starts, minlength=32)
    assert len(counts) == 32 and counts.min() > 850 and counts.max() < 1150  # 1000 +- 5 sigma


@pytest.mark.parametrize("seed", range(5))
def test_a_sweep_predicts_each_token_once(seed):
    draw = random.Random(seed)
    lengths, T = [draw.randint(1, 50) for _ in range(draw.randint(1, 12))] + [2], draw.randint(1, 16)
    borders = np.cumsum([0, *lengths])
    tokens = Tokens.of((np.arange(borders[-1]) % 251).astype(np.uint8), lengths)
    predicted = []
    for starts, ends in Windows(tokens, T).sweep(4):
        assert starts.shape == (4,)
        for s, e in zip(starts.tolist(), ends.tolist(), strict=True):
            predicted += range(s + 1, min(s + T + 1, e))
    assert sorted(predicted) == sorted(set(range(borders[-1])) - set(borders[:-1].tolist()))


def test_windows_depend_on_seed_stream_and_index_alone():
    windows = Windows(documents_of([500], 8), 8)

    def draw(*key):
        return windows.draw(*key, 16)[0].tolist()

    assert draw(1, rng.WINDOWS, 5) == draw(1, rng.WINDOWS, 5)
    assert windows.draw(1, "a", 5, 7)[0].tolist() == draw(1, "a", 5)[:7]
    assert len({tuple(draw(*k)) for k in [(1, "a", 5), (2, "a", 5), (1, "b", 5), (1, "a", 6)]}) == 4


def test_documents_end_in_eos_and_the_split_cuts_by_tokens():
    tokens = encode(corpus_of("aaaa", "bbbbb"), CharTokenizer("ab"), print)
    assert tokens.ids.host.tolist() == [2, 2, 2, 2, 1, 3, 3, 3, 3, 3, 1]
    train, val = tokens.split(0.4)
    assert (train.begins.tolist(), train.lengths.tolist()) == ([0, 5], [5, 1])
    assert (val.begins.tolist(), val.lengths.tolist()) == ([6], [5])
    assert (len(train), len(val)) == (6, 5)
    single = encode(corpus_of("aaaa"), CharTokenizer("ab"), print)
    assert single.ids.host.tolist() == [2, 2, 2, 2] and len(single) == 4


def test_each_source_is_split_for_itself():
    tokens = encode(corpus_of("a" * 99, "b" * 49, weights=[1, 2]), CharTokenizer("ab"), print)
    train, val = tokens.split(0.1)
    assert [n.lengths.tolist() for n in (train, val)] == [[90, 45], [10, 5]]
    assert val.sources.tolist() == [0, 1] and val.begins.tolist() == [90, 145]


def epoch_of(windows, seed, epoch, size):
    """One epoch's windows, drawn in batches of `size` that don't divide it."""
    total = windows.windows_per_epoch
    batches = [windows.shuffled(seed, first, min(size, total - first % total)) for first in range(0, total, size)]
    starts, ends = np.concatenate(batches, axis=1)
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
    counts = np.bincount(np.concatenate([windows.shuffled(5, e * 7, 7)[0] for e in range(4000)]), minlength=52)
    assert len(counts) == 52 and abs(counts / counts.mean() - 1).max() < 0.25  # 4 sigma of 538 draws is 0.17
    orders = {tuple(np.argsort(windows.shuffled(5, e * 7, 7)[0]).tolist()) for e in range(50)}
    assert len(orders) > 40


def test_a_batch_may_span_epochs_and_depends_on_its_place_alone():
    windows, again = (Windows(documents_of([60, 30], 8), 8) for _ in "ab")
    whole = windows.shuffled(3, 0, 100)[0]
    for first in (90, 13, 0, 50):
        np.testing.assert_array_equal(again.shuffled(3, first, 10)[0], whole[first : first + 10])
    assert not np.array_equal(again.shuffled(4, 0, 10)[0], whole[:10])


def test_weights_say_how_often_a_source_is_read():
    """Over many epochs each place of a source of weight w is read w times as often, drawn or shuffled."""
    lengths, weights, T = [400, 60, 200], (1.0, 3.0, 0.25), 8
    tokens = Tokens.of(np.repeat([0, 1, 2], lengths).astype(np.uint8), lengths, [0, 1, 2], weights=weights)
    windows = Windows(tokens, T)
    per_epoch = [49, 21, 6]
    assert windows.windows_per_epoch == sum(per_epoch)
    for epoch in range(5):
        drawn = tokens.ids.host[windows.shuffled(1, epoch * 76, 76)[0]]
        assert np.bincount(drawn).tolist() == per_epoch
    starts = windows.shuffled(1, 0, 76 * 40)[0]
    thirds = np.bincount((starts[starts >= 460] - 460) // 64)
    assert len(thirds) == 3 and thirds.min() > 0.95 * thirds.mean()  # no part of it is left out
    drawn = tokens.ids.host[windows.draw(1, "s", 0, 50_000)[0]]
    shares = np.array([392 * 1, 52 * 3, 192 * 0.25])
    assert np.bincount(drawn) / 50_000 == pytest.approx(shares / shares.sum(), abs=0.01)


def test_text_on_disk_and_on_the_device_give_the_same_batches(tmp_path):
    draw, T = np.random.default_rng(0), 8
    ids = draw.integers(0, 200, 163).astype(np.uint8)
    ids.tofile(tmp_path / "ids")
    lengths = [40, 3, 8, 9, 2, 100, 1]
    here = Windows(Tokens.of(ids, lengths), T)
    there = Windows(Tokens.of(np.memmap(tmp_path / "ids", np.uint8, "r"), lengths), T, on_device=False)
    for windows in (here.draw(1, "s", 3, 50), here.shuffled(1, 7, 50), *here.sweep(5)):
        a, b = here.batch(windows), there.batch(windows)
        assert all(mx.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))
    assert np.array_equal(here.shuffled(1, 7, 50), there.shuffled(1, 7, 50))


def test_draws_on_the_host_are_those_of_the_device():
    for index in (0, 5, 2**32 - 1):
        ours = rng.host_bits(3, "s", index, 1000)
        assert np.array_equal(ours, np.array(rng.bits(rng.key(3, "s", index), mx.arange(1000))))
        assert np.array_equal(rng.host_key(3, "s", index), np.array(rng.key(3, "s", index)))
