"""Makes `python -m mlx_gpt` run the command `mlxgpt`."""

from mlx_gpt.cli.main import main

main()
