#!/usr/bin/env bash
# The whole bench on an NVIDIA GPU, in one command: experiments/cuda.sh [FOLDER_OF_WHEELS]
#
# Makes .venv-cuda over the system's Python packages (its PyTorch is used if there is one), puts MLX's CUDA wheel in it,
# checks that MLX runs on the GPU, and measures model-l 64 x 256 in bfloat16 and float32, with 32- and 64-wide heads,
# and what the tuner finds. Records go to runs/bench-cuda/. With a folder of wheels nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -m venv --system-site-packages .venv-cuda
pip() { .venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
if [ $# -gt 0 ]; then
    pip --no-index --no-deps "$1"/*.whl
    pip --no-index --no-deps --no-build-isolation -e . || export PYTHONPATH="$PWD"
else
    pip -e '.[cuda,bench]'
    pip --force-reinstall --no-deps mlx-cuda-13 # shares a file with the CPU wheel: the last one installed wins
fi
mlxgpt() { .venv-cuda/bin/python -m mlx_gpt "$@"; }

mlxgpt doctor
mlxgpt doctor --json | grep -q '"backend": "cuda"' || { echo "MLX does not run on the GPU; see above"; exit 1; }
for dtype in bfloat16 float32; do
    for heads in 8 4; do
        mlxgpt bench --dtype $dtype --heads $heads --rounds 5 --out runs/bench-cuda/$dtype-$heads
    done
done
mlxgpt bench --tune
