"""How a process finds its group, and how it joins arrays to few pieces."""

import pytest

from mlx_gpt.device.mlx import mx
from mlx_gpt.distributed.ranks import address_of_first, buckets, join
from mlx_gpt.errors import GroupFailed
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


def test_a_hostfile_that_is_no_list_of_hosts_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "hosts").write_text("not JSON")
    monkeypatch.setenv("MLX_RANK", "1")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    with pytest.raises(GroupFailed, match="cannot reach each other: .*not a readable JSON file"):
        join()


def test_arrays_are_joined_by_dtype_to_pieces_of_a_size():
    floats, ints = [mx.zeros(n) for n in (1, 2, 9, 1)], [mx.zeros(3, mx.int32), mx.zeros(2, mx.int32)]
    arrays = [floats[0], ints[0], *floats[1:], ints[1]]
    assert buckets(arrays, 20) == [[0, 2], [3], [4], [1, 5]]
    assert buckets(arrays, 1) == [[0], [2], [3], [4], [1], [5]]
    assert buckets(arrays) == [[0, 2, 3, 4], [1, 5]]
