"""The benchmark of a preset: its case, its measurement, and the files that record it.

This is not in case.py because the processes of all contenders import that module, and this one loads MLX.
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
from mlx_gpt.config.schema import with_old_names
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.encoding import encode, make_tokenizer
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Windows
from mlx_gpt.files import write_atomic
from mlx_gpt.model.cost import flops_per_token, num_params, step_traffic
from mlx_gpt.model.gpt import GPT
from mlx_gpt.run.build import require_memory
from mlx_gpt.run.start import resolved

# Every contender has AdamW, and keeps no average of the weights.
COMMON = {"optimizer.name": "adamw", "optimizer.ema_decay": 0.0}


def make_case(preset: str, settings: dict[str, Any], note: Callable[[str], None], use_tuned: bool = True) -> Case:
    """Builds the case of a preset: its network, and the training text as one document."""
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
    """Runs race() on a case. Returns its result with the settings and sizes of the case."""
    config = case.config
    return {
        "config": with_old_names(config.to_dict()),
        "parameters": num_params(config.model, case.vocab_size),
        "flops_per_step": flops_per_token(config.model, case.vocab_size) * case.inputs.size,
        "bytes_per_step": step_traffic(config.model, case.vocab_size, case.inputs.size),
        **race(case, names, rounds, note),
    }


def write_record(record: dict[str, Any], folder: Path, note: Callable[[str], None]) -> list[Path]:
    """Writes bench.json and, with matplotlib, bench.png. Returns the files written."""
    written = [folder / "bench.json"]
    write_atomic(written[0], [json.dumps(record, indent=1).encode()])
    try:
        report.draw(folder / "bench.png", record["presets"], record["machine"])
        written.append(folder / "bench.png")
    except ModuleNotFoundError as error:
        note(f"no picture was drawn: it needs {error.name}; install it with: pip install -e '.[plot]'")
    return written
