"""The number of cores that mlxgpt uses."""

import pytest

from mlx_gpt.device.lanes import num_cores


@pytest.mark.parametrize(
    "value, cores", [("1", 1), ("1,2", 1), ("100000", None), ("0", None), ("many", None), ("", None)]
)
def test_omp_num_threads_limits_the_cores(monkeypatch, value, cores):
    """A value that is no number above 0 is no limit."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    every = num_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert num_cores() == (cores or every)
