"""metrics.jsonl."""

import io
import json
import math

import pytest
from reporting import evaluation, step, stop

from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.train.reports import SaveReport, StartReport
from mlx_gpt.watch import metrics as metrics_module
from mlx_gpt.watch.metrics import MetricsFile, read_metrics


def write(path, reports, resumed_at=0):
    metrics = MetricsFile(path, resumed_at)
    for report in reports:
        metrics.add(report)
    metrics.close()


def test_one_json_object_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [step(1), step(2), evaluation(2), SaveReport(step=2, path="x"), stop("iters")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["report"] for line in lines] == ["step", "step", "eval", "save", "stop"]
    assert [(line["step"], line.get("loss"), line.get("val_loss"), line["tokens"]) for line in lines[:3]] == [
        (1, 3.5, None, 100),
        (2, 3.5, None, 200),
        (2, None, 3.0, 200),
    ]
    assert read_metrics(path) == lines


def test_the_loss_before_the_first_update_is_no_loss_of_an_update_or_evaluation(tmp_path):
    write(tmp_path / "m", [StartReport(step=0, start_loss=4.5, ppl=90.0, eval_tokens=64, seconds=0.5), step(1)])
    first, second = read_metrics(tmp_path / "m")
    assert (first["report"], first["start_loss"]) == ("start", 4.5) and not {"loss", "val_loss"} & first.keys()


def test_a_resumed_run_drops_what_will_come_again_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [step(n) for n in range(1, 8)])
    with open(path, "a") as f:
        f.write('{"step": 8, "lo')
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 8))
    write(path, [step(5, loss=1.0)], resumed_at=4)
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(n, 3.5) for n in range(1, 5)] + [(5, 1.0)]


@pytest.mark.parametrize("line", [b"5", b"[]", b"\xff\xfe", b'{"step": "six"}', b'{"step": NaN}', b"[" * 100_000])
def test_a_line_that_is_no_report_is_skipped_and_blocks_no_resumed_run(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write(path, [step(1), step(2)])
    path.write_bytes(line + b"\n" + path.read_bytes() + line)
    assert [report["step"] for report in read_metrics(path)] == [1, 2]
    write(path, [step(2, loss=1.0)], resumed_at=1)
    assert [(report["step"], report["loss"]) for report in read_metrics(path)] == [(1, 3.5), (2, 1.0)]


def test_a_number_that_json_cannot_represent_blocks_no_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"report": "step", "step": 1, "loss": NaN}\n{"report": "step", "step": 1, "loss": 1e999}\n')
    write(path, [step(2)], resumed_at=1)
    assert [(report["step"], report["loss"]) for report in read_metrics(path)] == [(1, None), (2, 3.5)]


def test_statistics_of_an_evaluation_are_fields_of_its_line(tmp_path):
    write(tmp_path / "m", [evaluation(1, metrics={"H": 1.5}, shares={"zeros": 0.25, "layers.0.zeros": 0.5})])
    assert (
        read_metrics(tmp_path / "m")[0].items()
        >= {"H": 1.5, "zeros": 0.25, "layers.0.zeros": 0.5, "val_loss": 3.0}.items()
    )


def test_numbers_that_json_lacks_are_null(tmp_path):
    write(tmp_path / "m", [step(1, loss=math.nan, grad_norm=math.inf), evaluation(1, ppl=math.inf)])
    first, second = read_metrics(tmp_path / "m")
    assert first["loss"] is first["grad_norm"] is second["val_ppl"] is None


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path):
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, error in (("zeros", BadFile), ("folder", BadFile), ("absent/metrics.jsonl", UserError)):
        with pytest.raises(error, match=f"{tmp_path / name}: "):
            MetricsFile(tmp_path / name)
    for name in ("zeros", "folder"):
        with pytest.raises(BadFile, match=f"{tmp_path / name}: .*special file"):
            read_metrics(tmp_path / name)


def test_a_full_disk_ends_the_file_and_not_the_run(tmp_path, monkeypatch):
    said = []

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    path = tmp_path / "m"
    monkeypatch.setattr(
        metrics_module, "open", lambda p, *a, **k: Full() if p == path else open(p, *a, **k), raising=False
    )
    metrics = MetricsFile(path, warn=said.append)
    metrics.add(step(1))
    metrics.add(step(2))
    metrics.close()
    assert said == ["metrics.jsonl cannot be written: No space left on device; later reports are not recorded"]
