"""What keeps a small text from being learned by heart: a sixth of Shakespeare, a sixth of the model, 17 epochs.

The proportions of a long run of model-l on the whole text, in four minutes. Validation is the whole usual split.
"""

import os
import tempfile
from pathlib import Path

from table import measure

TRAIN, VAL = 160_000, 111_540  # characters
text = (Path(os.environ["MLXGPT_CORPUS_DIR"]) / "shakespeare.txt").read_text()
with tempfile.TemporaryDirectory() as folder:
    corpus = Path(folder) / "sixth.txt"
    corpus.write_text(text[:TRAIN] + text[-VAL:])
    measure(
        "regularisation",
        {
            "dropout 0.1": ["--set", "model.dropout=0.1"],
            "dropout 0.2": ["--set", "model.dropout=0.2"],
            "dropout 0.3": ["--set", "model.dropout=0.3"],
            "0.2, embed 0.1": ["--set", "model.dropout=0.2", "--set", "model.embed_dropout=0.1"],
            "0.2, corrupt 0.1": ["--set", "model.dropout=0.2", "--set", "train.corrupt=0.1"],
            "0.2, decay 0.4": ["--set", "model.dropout=0.2", "--set", "optimizer.weight_decay=0.4"],
        },
        seeds=[1],
        common=[
            *("--preset", "model-s", "--corpus", str(corpus), "--batch", "16", "--iters", "1300"),
            *("--set", "model.block_size=128", "--set", f"data.val_fraction={VAL / (TRAIN + VAL)}"),
            *("--set", "optimizer.ema_decay=0.99", "--set", "train.patience=0", "--set", "train.save_minutes=0"),
            *("--eval-every", "130"),
        ],
    )
