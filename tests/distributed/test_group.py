"""How a process finds its group, and how it joins arrays to few pieces."""

import pytest

from mlx_gpt.config.presets import resolve
from mlx_gpt.device.mlx import mx
from mlx_gpt.distributed.environment import address_of_first
from mlx_gpt.distributed.ranks import buckets, join
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.run.build import require_rows
from mlx_gpt.train.parallel import Alone


def test_a_process_without_others_is_alone(monkeypatch, tmp_path):
    """`mlx.launch -n 1` gives an empty list of hosts."""
    monkeypatch.delenv("MLX_RANK", raising=False)
    assert isinstance(join(), Alone)
    (tmp_path / "hosts").write_text("\n")
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert isinstance(join(), Alone)


@pytest.mark.parametrize(
    "name, value, address",
    [("MLX_JACCL_COORDINATOR", "10.0.0.1:4000", "10.0.0.1"), ("NCCL_HOST_IP", "10.0.0.2", "10.0.0.2")],
)
def test_the_address_of_rank_0_is_that_of_the_launcher(monkeypatch, tmp_path, name, value, address):
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    monkeypatch.setenv(name, value)
    assert address_of_first() == address
    (tmp_path / "hosts").write_text('[["10.0.0.3:5000", "10.0.0.3:5001"], ["10.0.0.4:5000"]]')
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert address_of_first() == "10.0.0.3"


@pytest.mark.parametrize(
    "text",
    ['{"a": 1}', "[]", "3", '["10.0.0.1:5000"]', "[[]]", '[["10.0.0.1"]]', '[["10.0.0.1:x"]]', "[[5000]]", "[null]"]
    + ['[{"ssh": "a", "ips": ["10.0.0.1"]}]', '[["10.0.0.1:99999"]]', '[[":5000"]]'],
)
def test_a_hostfile_that_is_no_list_of_addresses_is_an_error(monkeypatch, tmp_path, text):
    (tmp_path / "hosts").write_text(text)
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    with pytest.raises(BadFile, match="hosts: is no list of the addresses of each rank, such as "):
        join()


@pytest.mark.parametrize(
    "variables, error, words",
    [
        ({"MLX_RANK": "1"}, UserError, "MLX_RANK is set, but none of MLX_HOSTFILE, .*unset MLX_RANK"),
        ({"MLX_HOSTFILE": "hosts"}, UserError, "MLX_HOSTFILE is set, but MLX_RANK is not"),
        ({"MLX_HOSTFILE": "hosts", "MLX_RANK": "-1"}, UserError, "MLX_RANK='-1' is not the number of a rank"),
        ({"MLX_HOSTFILE": "hosts", "MLX_RANK": "x"}, UserError, "MLX_RANK='x' is not the number of a rank"),
        ({"MLX_HOSTFILE": "hosts", "MLX_RANK": "2"}, UserError, "MLX_RANK=2: hosts has 2 ranks"),
        ({"MLX_HOSTFILE": "", "MLX_RANK": "1"}, UserError, "MLX_HOSTFILE is empty"),
        ({"MLX_HOSTFILE": "absent", "MLX_RANK": "1"}, UserError, "absent: no such file"),
        ({"MLX_HOSTFILE": "text", "MLX_RANK": "1"}, BadFile, "text: not a readable JSON file"),
    ],
)
def test_variables_that_describe_no_group_are_an_error(monkeypatch, tmp_path, variables, error, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text('[["10.0.0.3:5000", "10.0.0.3:5001"], ["10.0.0.4:5000"]]')
    (tmp_path / "text").write_text("not JSON")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=words):
        join()


def test_more_ranks_cannot_be_required_than_there_are():
    config = resolve(overrides={"train.sync_every": 50, "train.min_ranks": 3})
    require_rows(config, 3)
    require_rows(config, 1)  # a run of three ranks may be continued by one process
    with pytest.raises(UserError, match="train.min_ranks=3: the run has 2 processes; give at most 2"):
        require_rows(config, 2)


def test_arrays_are_joined_by_dtype_to_pieces_of_a_size():
    floats, ints = [mx.zeros(n) for n in (1, 2, 9, 1)], [mx.zeros(3, mx.int32), mx.zeros(2, mx.int32)]
    arrays = [floats[0], ints[0], *floats[1:], ints[1]]
    assert buckets(arrays, 20) == [[0, 2], [3], [4], [1, 5]]
    assert buckets(arrays, 1) == [[0], [2], [3], [4], [1], [5]]
    assert buckets(arrays) == [[0, 2, 3, 4], [1, 5]]
