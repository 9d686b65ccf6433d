"""Compares the settings that `--minutes` chooses with the defaults, in two minutes of training as in `make train`.

How many updates fit into the time depends on the machine, so nothing else should run on it.
"""

from table import measure, settings

from mlx_gpt.config.budget import CHOSEN
from mlx_gpt.config.schema import Config

for seed in (1, 2, 3):  # the variants take turns
    measure(
        "minutes",
        {"--minutes": [], "defaults": settings({name: Config().get(name) for name in sorted(CHOSEN)})},
        seeds=[seed],
        common=["--preset", "model-s", "--corpus", "pydocs", "--minutes", "2"],
    )
