"""`python -m mlx_gpt` is `mlxgpt`."""

from mlx_gpt.cli.main import main

main()
