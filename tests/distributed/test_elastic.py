"""The places of processes in a group that has changed, without processes."""

import json
import os
from pathlib import Path

import pytest

from mlx_gpt.config.presets import resolve
from mlx_gpt.distributed.elastic import Place, places
from mlx_gpt.distributed.ranks import join
from mlx_gpt.errors import UserError

HOSTS = [["10.0.0.1:5000", "10.0.0.1:5001"], ["10.0.0.2:5000", "10.0.0.2:5001"], ["10.0.0.3:5000", "10.0.0.3:5001"]]


def test_remaining_ranks_keep_their_order_and_those_that_join_come_last():
    left = places(HOSTS, [0, 2], [], 2, "address")
    assert [(p.rank, p.hosts) for p in left] == [(0, [HOSTS[0], HOSTS[2]]), (1, [HOSTS[0], HOSTS[2]])]
    assert [(p.min_ranks, p.address) for p in left] == [(2, "address"), (2, "address")]
    joined = places(HOSTS, [0, 1], ["10.0.0.9:7000"], 1, "address")
    assert [p.rank for p in joined] == [0, 1, 2]
    assert joined[2].hosts == [["10.0.0.1:5000"], ["10.0.0.2:5000"], ["10.0.0.9:7000"]]


def test_a_place_goes_through_the_environment_and_leaves_nothing_behind(monkeypatch):
    for name in ("MLX_RANK", "MLX_HOSTFILE"):
        monkeypatch.setenv(name, "before")
    place = Place(rank=1, hosts=HOSTS, min_ranks=2, address="here")
    for name, value in place.change("a rank was lost").environment.items():
        monkeypatch.setenv(name, value)
    assert Place.is_given() and Place.given() == place
    assert not Place.is_given() and Place.given() is None
    with place.taken():
        path = Path(os.environ["MLX_HOSTFILE"])
        assert os.environ["MLX_RANK"] == "1" and json.loads(path.read_text()) == HOSTS
    assert not path.exists()


def test_a_group_of_one_host_takes_further_processes(monkeypatch, tmp_path):
    """A single process with a hostfile is a rank, and not alone: rank 0 of a run that others join."""
    (tmp_path / "hosts").write_text('[["127.0.0.1:5000"]]')
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    group = join()
    try:
        assert (group.rank, group.size, group.gather(7)) == (0, 1, [[7]])
        assert group.allow_changes(1, 4).startswith("127.0.0.1:") and not group.has_newcomers()
    finally:
        group.leave(True)


def test_a_run_that_exchanges_gradients_cannot_lose_ranks():
    with pytest.raises(UserError, match="train.min_ranks=2 needs train.sync_every above 0"):
        resolve(overrides={"train.min_ranks": 2})
