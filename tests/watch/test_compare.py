"""Runs side by side: what differs, what was reached when, and the pictures."""

import json
import sys

import pytest
from commands import mlxgpt

from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.watch.compare import MAX_THRESHOLDS, differences, draw, read_record, table, thresholds


def make_run(folder, losses, batch=16, seconds=0.5):
    """A run of 10 updates an evaluation, 100 tokens an update. An evaluation takes an eighth of a second."""
    folder.mkdir()
    lines = []
    for n, loss in enumerate(losses, 1):
        for step in range(n * 10 - 9, n * 10 + 1):
            line = {"step": step, "loss": loss, "grad_norm": 1.0, "lr": 1e-3, "tokens": step * 100}
            lines.append(line | {"seconds": seconds, "elapsed": step * seconds})
        line = {"step": n * 10, "val_loss": loss, "val_ppl": 2**loss, "val_bits_per_byte": loss, "tokens": n * 1000}
        lines.append(line | {"elapsed": n * 10 * seconds + 0.125})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.toml").write_text(f'[train]\nbatch_size = {batch}\niters = 9\n[data]\ncorpus = ["a", "b"]\n')
    return folder


@pytest.fixture
def records(tmp_path):
    slow, fast = make_run(tmp_path / "slow", [3.0, 2.5, 2.25]), make_run(tmp_path / "fast", [2.4, 1.8, 1.9], 8, 0.25)
    return [read_record(slow), read_record(fast)]


def test_facts_are_those_of_the_files(records):
    slow, fast = (record.facts() for record in records)
    assert (slow["best_loss"], slow["best_step"], slow["best_tokens"]) == (2.25, 30, 3000)
    assert (fast["best_loss"], fast["best_step"], fast["tokens"], fast["seconds"]) == (1.8, 20, 3000, 7.625)
    assert (fast["ms_per_iter"], fast["tokens_per_second"]) == (250, 400)
    assert [record.tokens_to(2.5) for record in records] == [2000, 1000]
    assert [record.tokens_to(2.0) for record in records] == [None, 2000]
    assert [record.seconds_to(2.5) for record in records] == [10.125, 2.625]
    assert [record.seconds_to(2.0) for record in records] == [None, 5.125]


def test_lines_that_are_no_reports_change_no_comparison(records, tmp_path):
    path = tmp_path / "slow/metrics.jsonl"
    bad = [b"5", b"\xff", b'{"val_loss": 1.0}', b'{"step": "1", "val_loss": 1.0}', b'{"step": 0, "grad_norm": 1.0}']
    bad.append(b'{"step": 30, "val_loss": "low", "tokens": 3000, "elapsed": 1}')
    path.write_bytes(b"\n".join([*bad, path.read_bytes(), *bad]))
    assert read_record(tmp_path / "slow") == records[0]


def test_a_value_that_an_evaluation_lacks_is_missing_in_the_table(tmp_path):
    run = make_run(tmp_path / "run", [3.0])
    text = (run / "metrics.jsonl").read_text().replace('"val_ppl": 8.0', '"val_ppl": null')
    (run / "metrics.jsonl").write_text(text)
    assert dict(table([read_record(run)], []))["perplexity"] == ["-"]


def test_a_speed_that_is_not_finite_is_missing(tmp_path):
    facts = read_record(make_run(tmp_path / "run", [3.0], seconds=1e-320)).facts()
    assert "tokens_per_second" not in facts and facts["best_loss"] == 3.0


def test_numbers_that_only_damage_explains_end_no_comparison(tmp_path):
    for name, loss in (("a", 1e308), ("b", -1e308), ("c", 2.0)):
        run = make_run(tmp_path / name, [2.0, 1.5])
        lines = ['{"step": 1, "grad_norm": 1.0, "loss": 1e308, "tokens": 1e300, "elapsed": 1e-320, "seconds": 1e-320}']
        lines += ['{"step": 2, "val_loss": NaN, "tokens": 1, "elapsed": 1}', '{"step": 1e300, "val_loss": 1.0}']
        lines += [json.dumps({"step": 1, "val_loss": loss, "tokens": 100, "elapsed": 0.5})]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n" + (run / "metrics.jsonl").read_text())
        (run / "run.toml").write_text(
            '[optimizer]\nlearning_rate = "fast"\nmuon_lr_scale = 1.5\n[train]\niters = [1]\n'
        )
    done = mlxgpt("compare", "a", "b", "c", cwd=tmp_path)
    assert done.returncode == 0 and "best loss" in done.stdout
    assert mlxgpt("compare", "a", "b", "c", "--json", cwd=tmp_path).returncode == 0


def test_the_training_loss_is_drawn_from_the_means_of_bins(records):
    curve = records[0].curve
    assert curve["tokens"][:2] == [100, 200] and curve["loss"][0] == 3.0 and len(curve["loss"]) == 30


def test_only_differing_settings_are_shown(records):
    assert differences(records) == {"train.batch_size": [16, 8]}
    assert differences(records[:1]) == {}
    rows = dict(table(records, [2.0]))
    assert rows["train.batch_size"] == ["16", "8"] and rows["tokens to 2"] == ["-", "2,000"]
    assert rows["seconds to 2"] == ["-", "5"]
    assert rows["best loss"] == ["2.2500", "1.8000"]


def test_a_setting_that_one_run_never_had_differs(records, tmp_path):
    other = make_run(tmp_path / "other", [2.0])
    (other / "run.toml").write_text("[train]\nbatch_size = 16\niters = 9\n")
    assert differences([records[0], read_record(other)])["data.corpus"] == [["a", "b"], None]


@pytest.mark.parametrize("losses", [[4.0, 1.4697], [2.37], [2.3, 2.296], [9.0, 0.1], [900.0, 2.0]])
def test_thresholds_are_few_round_and_within_reach(tmp_path, losses):
    levels = thresholds([read_record(make_run(tmp_path / "run", losses))])
    assert len(levels) <= MAX_THRESHOLDS and levels == sorted(levels, reverse=True)
    assert all(min(losses) <= level <= losses[0] for level in levels)
    if max(losses) - min(losses) >= 0.01:
        assert levels


@pytest.mark.parametrize("suffix, begins", [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_pictures_are_drawn(records, tmp_path, suffix, begins):
    pytest.importorskip("matplotlib")
    draw(tmp_path / f"curves{suffix}", records, marks=[("published", [1000, 2000], [3.0, 2.5])])
    assert (tmp_path / f"curves{suffix}").read_bytes().startswith(begins)


def test_what_is_no_run_is_named(records, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="absent: no such run"):
        read_record(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        read_record(tmp_path)
    fresh = make_run(tmp_path / "fresh", [])
    with pytest.raises(UserError, match="not evaluated yet"):
        read_record(fresh)
    broken = make_run(tmp_path / "broken", [2.0])
    (broken / "run.toml").write_text("[train")
    with pytest.raises(BadFile, match="run.toml"):
        read_record(broken)
    with pytest.raises(UserError, match=r"curves\.gif: pictures are \.png, \.svg, \.pdf"):
        draw(tmp_path / "curves.gif", records)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"'\.\[plot\]'"):
        draw(tmp_path / "curves.png", records)


def test_a_torn_last_line_is_left_out(records, tmp_path):
    run = make_run(tmp_path / "torn", [2.0, 1.9])
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-20])
    assert len(read_record(run).evaluations) == 1
