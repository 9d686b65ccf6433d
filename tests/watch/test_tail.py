"""Reading metrics.jsonl while it grows, is replaced, truncated, damaged or deleted."""

import json
import os
import random
import tracemalloc

import pytest
from mutations import mutated_lines
from reporting import evaluation, step, stop

from mlx_gpt.watch.metrics import MetricsFile
from mlx_gpt.watch.tail import MAX_LINE, Tail, all_reports, number, parse_report


def content(tmp_path, steps=12):
    metrics = MetricsFile(tmp_path / "whole.jsonl")
    for n in range(1, steps + 1):
        metrics.add(step(n, loss=3.5 - n / 100))
        if n % 4 == 0:
            metrics.add(evaluation(n))
    metrics.add(stop("iters"))
    metrics.close()
    return (tmp_path / "whole.jsonl").read_bytes()


def everything(tail, size=1 << 18):
    reports = []
    while (batch := tail.read(size)).num_bytes:
        reports = batch.reports if batch.restarted else reports + batch.reports
    return reports


def test_a_sparse_reader_skips_updates_that_another_one_follows(tmp_path):
    """Whatever the size of its reads. The end of a file gives the same reports as the whole file."""
    data = content(tmp_path, 12)
    path = tmp_path / "whole.jsonl"
    expected = [(line["report"], line["step"]) for line in map(json.loads, data.splitlines())]
    pairs = zip(expected, [*expected[1:], ("", 0)], strict=True)
    kept = [each for each, following in pairs if not each[0] == following[0] == "step"]
    assert [(line["report"], line["step"]) for line in all_reports(path, sparse=True)] == kept
    for size in (1, 100, 1000):
        found = [(line["report"], line["step"]) for line in everything(Tail(path, sparse=True), size)]
        assert [each for each in found if each in kept] == kept and set(found) <= set(expected)
    for size in range(len(data) + 1):
        end = [(line["report"], line["step"]) for line in Tail(path).end(size)]
        assert end == kept[len(kept) - len(end) :]
    assert end == kept and Tail(tmp_path / "absent").end() == []


def test_reading_piece_by_piece_equals_reading_at_once(tmp_path):
    """For every split of the bytes into two, and for reads of every small size."""
    data = content(tmp_path, 2)
    expected = [json.loads(line) for line in data.splitlines()]
    path = tmp_path / "metrics.jsonl"
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        tail = Tail(path)
        found = everything(tail)
        assert found == expected[: data[:cut].count(b"\n")]
        with open(path, "ab") as file:
            file.write(data[cut:])
        assert found + everything(tail) == expected
    for size in (1, 2, 7, 100):
        assert everything(Tail(path), size) == expected


def test_only_new_bytes_are_read(tmp_path):
    data = content(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(data)
    tail = Tail(path)
    assert tail.read().num_bytes == len(data) and tail.unread == 0
    assert tail.read().num_bytes == 0
    with open(path, "ab") as file:
        file.write(b'{"step": 99}\n')
    tail.look()
    assert tail.unread == 13
    batch = tail.read()
    assert (batch.num_bytes, batch.reports, batch.restarted) == (13, [{"step": 99}], False)


def rewritten(path, data):
    path.write_bytes(data)


def replaced(path, data):
    other = path.with_name("other")
    other.write_bytes(data)
    os.replace(other, path)


@pytest.mark.parametrize("change", [rewritten, replaced])
@pytest.mark.parametrize("longer", [False, True])
def test_a_file_that_was_changed_is_read_again(tmp_path, change, longer):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content(tmp_path))
    tail = Tail(path)
    tail.read()
    new = b'{"step": 1, "loss": 9.0}\n' * (300 if longer else 2)
    change(path, new)
    batch = tail.read()
    assert batch.restarted and batch.reports == [{"step": 1, "loss": 9.0}] * (300 if longer else 2)


def test_a_file_that_is_deleted_and_comes_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert not tail.read().reports and not tail.exists
    path.write_bytes(b'{"step": 1}\n')
    assert tail.read().reports == [{"step": 1}] and tail.exists
    path.unlink()
    assert not tail.read().reports and not tail.exists and tail.unread == 0
    path.write_bytes(b'{"step": 2}\n')
    assert tail.read().reports == [{"step": 2}]


@pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
def test_what_is_no_regular_file_has_no_reports(tmp_path, kind):
    path, secret = tmp_path / "metrics.jsonl", tmp_path / "secret"
    secret.write_text('{"step": 1}\n')
    {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(secret)}[kind]()
    tail = Tail(path)
    assert not tail.read().reports and not tail.exists


def test_damaged_lines_are_counted_and_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    bad = [
        b"5",
        b"[]",
        b"\xff\xfe",
        b'{"step": "six"}',
        b'{"step": NaN}',
        b"[" * 100_000,
        b'{"step": -1}',
        b"x" * 2 * MAX_LINE,
    ]
    path.write_bytes(b"\n".join([b'{"step": 1}', *bad, b'{"step": 2, "loss": NaN}', b"", b'{"step": 3}']) + b"\n")
    tail, reports, damaged = Tail(path), [], 0
    while (batch := tail.read(1 << 18)).num_bytes:
        reports, damaged = reports + batch.reports, damaged + batch.num_damaged
    assert reports == [{"step": 1}, {"step": 2, "loss": None}, {"step": 3}] and damaged == len(bad)


def test_random_damage_never_raises(tmp_path):
    data, draw, path = content(tmp_path), random.Random(0), tmp_path / "metrics.jsonl"
    for _ in range(150):
        path.write_bytes(mutated_lines(data, draw))
        for report in all_reports(path):
            assert isinstance(report, dict)
            assert all(value is None or abs(value) < 1e309 for value in map(number, report.values()))


def test_memory_does_not_depend_on_the_size_of_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "loss": 3.5, "text": "x" * 400}).encode() + b"\n"
    path.write_bytes(line * 4_000)  # 1.8 MB
    tail = Tail(path)
    tracemalloc.start()
    while tail.read(1 << 16).num_bytes:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 19


def test_a_complete_last_line_without_its_newline_belongs_to_a_file_that_is_finished(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    assert [report["step"] for report in all_reports(path)] == [1, 2]
    assert parse_report(b'{"step": 3, "loss": 1e999}') == {"step": 3, "loss": float("inf")}
    assert number(float("inf")) is None and number(True) is None and number(1 << 70) is None
