"""Hands the settings and the progress of a run from rank 0 to the other processes of its group.

Only rank 0 reads the request, the run folder and the checkpoints. The other processes need only the corpus.
"""

import json
from pathlib import Path

from mlx_gpt.checkpoint.store import Header
from mlx_gpt.data.encoding import make_tokenizer
from mlx_gpt.errors import Mismatch
from mlx_gpt.run.build import Start, open_text
from mlx_gpt.run.loading import tokenizer_of
from mlx_gpt.run.request import Note
from mlx_gpt.train.parallel import Group, bytes_of_first


def send(group: Group, start: Start, folder: Path) -> None:
    """Sends the header and the folder of a run to the other processes. Called on rank 0."""
    bytes_of_first(group, json.dumps([start.header.to_json(), str(folder)]).encode())


def received(group: Group, note: Note) -> tuple[Start, Path]:
    """Returns the initial state and the folder that rank 0 sends, without weights. Called on the other ranks.

    Raises:
        Mismatch: The corpus is another text than on rank 0.
        UserError: There is no such corpus here.
    """
    header_json, folder = json.loads(bytes_of_first(group, b""))
    header = Header.from_json(header_json)
    corpus = open_text(header.config, note)
    if corpus.fingerprint != header.corpus:
        raise Mismatch(
            f"corpus {corpus.name} is another text than on rank 0: SHA-256 {corpus.fingerprint[:12]}..., there "
            f"{str(header.corpus)[:12]}...; copy the text of rank 0 to this machine"
        )
    tokenizer = tokenizer_of("rank 0", header) or make_tokenizer(corpus, header.config.data, note)
    start = Start(header=header, weights=None, optimizer=None, corpus=corpus, tokenizer=tokenizer, folder=Path(folder))
    return start, Path(folder)
