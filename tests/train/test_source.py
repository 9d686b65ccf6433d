"""The source of training batches."""

import pytest
from training import tokens

from mlx_gpt.config.schema import TrainConfig
from mlx_gpt.data.windows import Windows
from mlx_gpt.errors import BadFile
from mlx_gpt.train.source import TextSource


@pytest.mark.parametrize("position", [{}, {"windows": -1}, {"windows": "3"}, {"windows": 2.0}, {"windows": True}])
def test_a_position_that_is_not_a_number_of_windows_is_refused(position):
    source = TextSource(Windows(tokens(100, 0), 8), TrainConfig())
    source.seek({"windows": 3})
    with pytest.raises(BadFile, match="position in the text"):
        source.seek(position)
    assert source.position == {"windows": 3}
