"""The benchmark of a preset: builds its case, measures it, and writes the files that record the result.

make_case() is not in case.py because it needs MLX, and case.py is also imported by the processes that run PyTorch.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlx_gpt import rng
from mlx_gpt.bench import report
from mlx_gpt.bench.case import Case
from mlx_gpt.bench.race import race
from mlx_gpt.config.presets import resolve
from mlx_gpt.config.renames import with_old_names
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.encoding import encode, make_tokenizer
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Windows
from mlx_gpt.files import write_atomic
from mlx_gpt.model.cost import flops_per_token, num_params, step_traffic
from mlx_gpt.model.gpt import GPT
from mlx_gpt.run.build import require_memory
from mlx_gpt.run.start import resolved

# Defaults of every case: all contenders implement AdamW, and only mlxgpt can average weights.
COMMON = {"optimizer.name": "adamw", "optimizer.ema_decay": 0.0}


def make_case(preset: str, settings: dict[str, Any], note: Callable[[str], None], use_tuned: bool = True) -> Case:
    """Builds the case of a preset: its network with initial weights, and the training split of its text.

    The split is treated as one document, because the other contenders know no boundaries between documents.

    Args:
        preset: Name or TOML file of the preset.
        settings: Dotted settings, which take precedence over COMMON. Both take precedence over the preset.
        note: Called with one line for each thing the user should know.
        use_tuned: Whether to use the settings that `mlxgpt bench --tune` found for this device.

    Raises:
        UserError: A setting or a name is wrong.
        OutOfRoom: A step does not fit into memory.
    """
    settings = COMMON | settings
    config = resolved(preset, None, settings, note) if use_tuned else resolve(preset, None, settings)
    corpus = open_corpus(config.data.corpus)
    tokenizer = make_tokenizer(corpus, config.data, note)
    require_memory(config, tokenizer.vocab_size)
    tokens = encode(corpus, tokenizer, note)
    ids = np.array(tokens.ids.host[: int(len(tokens) * (1 - config.data.val_fraction))])
    windows = Windows(Tokens.of(ids, [len(ids)]), config.model.block_size)
    batch = windows.batch(windows.draw(config.train.seed, rng.WINDOWS, 0, config.train.sequences_per_step))
    return Case(
        config=config,
        vocab_size=tokenizer.vocab_size,
        weights={name: np.array(w) for name, w in GPT(config.model, tokenizer.vocab_size).weights().items()},
        ids=ids,
        inputs=np.array(batch.inputs),
        targets=np.array(batch.targets),
    )


def measure(case: Case, names: list[str], rounds: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Runs race() on a case. Returns its result, together with the settings and the size of the case.

    The arguments are those of race().
    """
    config = case.config
    return {
        "config": with_old_names(config.to_dict()),
        "parameters": num_params(config.model, case.vocab_size),
        "flops_per_step": flops_per_token(config.model, case.vocab_size) * case.inputs.size,
        "bytes_per_step": step_traffic(config.model, case.vocab_size, case.inputs.size),
        **race(case, names, rounds, note),
    }


def write_record(record: dict[str, Any], folder: Path, note: Callable[[str], None]) -> list[Path]:
    """Writes bench.json and, if matplotlib is installed, bench.png. Returns the paths of the files written."""
    written = [folder / "bench.json"]
    write_atomic(written[0], [json.dumps(record, indent=1).encode()])
    try:
        report.draw(folder / "bench.png", record["presets"], record["machine"])
        written.append(folder / "bench.png")
    except ModuleNotFoundError as error:
        note(f"no picture was drawn: it needs {error.name}; install it with: pip install -e '.[plot]'")
    return written
