"""`mlxgpt convert` converts a checkpoint to another format. `mlxgpt inspect` prints what a checkpoint contains."""

import math
from pathlib import Path

import click

from mlx_gpt import api, model, run
from mlx_gpt.cli.options import (
    corpus_option,
    echo_json,
    json_option,
    note,
    preset_option,
    set_option,
    sizes_from,
    vocab_option,
)
from mlx_gpt.config.presets import preset_of
from mlx_gpt.config.renames import with_old_names

FORMATS = ["safetensors", "rgpt0001", "rgpt0002", "rgpt0003", "gguf", "nanochat"]

# The line of `inspect` for a ternary network.
TERNARY = (
    "{bits_per_weight:.3g} bits per weight, {zeros:.1%} zeros, group {group}, {scales:,} scales from {min_scale:.4g} "
    "to {max_scale:.4g}"
)


@click.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format",
    type=click.Choice(FORMATS),
    help="Format of DST.  [default: safetensors; for a DST that ends in .gguf: gguf; for a DST that ends in .bin: "
    "rgpt0003 if SRC has AdamW's moments, otherwise rgpt0002]",
)
@click.option("--packed", is_flag=True, help="Write a ternary network with 2 bits per weight, for inference only.")
@click.option(
    "--mhc",
    type=click.Path(path_type=Path),
    help="File with the residual streams of a nanochat model: it is read if SRC is one, and written for --format "
    "nanochat.",
)
@click.option("--force", is_flag=True, help="Overwrite DST.")
@preset_option
@corpus_option
@vocab_option
@set_option
def convert_command(src, dst, format, packed, mhc, force, preset, corpus, vocab, sets):
    """Convert a checkpoint between safetensors, RGPT0001, RGPT0002, RGPT0003, GGUF and nanochat.

    \b
    mlxgpt convert model.bin model.safetensors --preset model-l --corpus shakespeare
    mlxgpt convert runs/model-l-shakespeare/best.safetensors model.bin --format rgpt0002
    mlxgpt convert model.gguf model.safetensors
    mlxgpt convert runs/ternary-m-shakespeare small.safetensors --packed
    mlxgpt convert nanochat.gguf model.safetensors --mhc nanochat.mhc --vocab tokenizer.json

    RGPT0001 to RGPT0003 are randyGPT's checkpoint formats. RGPT0001 and RGPT0003 also hold the moments of AdamW, so
    they need a checkpoint of a run with --set optimizer.name=adamw. GGUF is the format of llama.cpp. It holds only
    Llama's network, as in the preset llama-s, with its tokenizer. nanochat is the format of nanochat-rs-ternary, which
    holds Llama's ternary network without a tokenizer.

    An RGPT file contains no tokenizer. --corpus builds one from the characters of the training text. --vocab reads one
    from a file.
    """
    options = {"preset": preset, "corpus": corpus, "vocab": vocab, "packed": packed, "mhc": mhc, "force": force}
    written = api.convert(src, dst, format, **options, note=note, **sizes_from(sets))
    click.echo(f"{dst}: {written}, {dst.stat().st_size:,} bytes", err=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@preset_option
@set_option
@json_option
def inspect_command(file, preset, sets, as_json):
    """Print a checkpoint's header, sizes, tensors and passed checks, without building the model."""
    file = run.checkpoint_in(file)
    checkpoint = run.read_checkpoint(file, preset, sizes_from(sets))
    header, shape = checkpoint.header, checkpoint.header.config.model
    format = run.format_of(file)
    tensors = checkpoint.weights | {f"optimizer.{k}": t for k, t in checkpoint.optimizer.items()}
    facts = {
        "file": str(file),
        "format": format,
        "bytes": (file / "model.safetensors" if file.is_dir() else file).stat().st_size,
        "vocab_size": header.vocab_size,
        "preset": preset_of(shape),
        **shape.shape(),
        "network": shape.extensions() or ["randyGPT's"],
        "parameters": model.cost.num_params(shape, header.vocab_size),
        **model.cost.decoding_bytes(shape),
        # Scripts for mlxgpt 0.1 read these two names in the JSON. There, "step" was the number of updates.
        "iteration": header.step,
        "step": header.num_updates,
        "num_updates": header.num_updates,
        "best_loss": header.best_loss if math.isfinite(header.best_loss) else None,
        "tokenizer": header.tokenizer["kind"] if header.tokenizer else None,
        "averaged": header.averaged,
        "optimizer": bool(checkpoint.optimizer),
        "ternary": model.packing.summary(shape, checkpoint.weights),
        "checks": ["length", "names and shapes", "finite"] + ["SHA-256"] * (format == "safetensors"),
    }
    if as_json:
        config = None if header.tokenizer is None else with_old_names(header.config.to_dict())
        echo_json(facts | {"config": config, "tensors": {k: list(t.shape) for k, t in tensors.items()}})
        return
    ternary = facts.pop("ternary")
    facts["step"] = facts.pop("iteration")
    facts |= {"ternary": TERNARY.format(**ternary)} if ternary else {}
    for name, value in facts.items():
        click.echo(f"{name:<12} {', '.join(value) if isinstance(value, list) else value}")
    click.echo(f"{'tensors':<12} {len(tensors)}")
    for name, tensor in tensors.items():
        click.echo(
            f"  {name:<34} {' x '.join(map(str, tensor.shape)):>12}   mean {tensor.mean():+.5f}  std {tensor.std():.5f}"
        )
