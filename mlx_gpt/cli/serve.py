"""`mlxgpt serve`: serves a checkpoint over an OpenAI-compatible HTTP API with a web page."""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from mlx_gpt import api, device, model, run
from mlx_gpt.cli.access import access_of, access_options, address_of
from mlx_gpt.cli.options import corpus_option, note, preset_option, set_option, sizes_from, vocab_option
from mlx_gpt.errors import OutOfRoom, UserError


@click.command()
@click.argument("checkpoints", metavar="[CHECKPOINT]...", nargs=-1, type=click.Path(path_type=Path))
@access_options(port=8080)
@click.option("--name", help="Model id in the API, for one checkpoint.  [default: name of the run folder or file]")
@click.option(
    "--streams",
    type=click.IntRange(1, 256),
    default=16,
    help="Texts generated concurrently.",
)
@click.option(
    "--queue", type=click.IntRange(0), default=64, help="Texts that may wait; further requests get status 429."
)
@click.option("--max-tokens", type=click.IntRange(1), default=4096, help="Maximum tokens per text.")
@click.option(
    "--max-choices",
    type=click.IntRange(1),
    help="Maximum texts per request (n x prompts).  [default: --streams + --queue]",
)
@click.option("--max-prompt", type=click.IntRange(1), default=100_000, help="Maximum characters per prompt.")
@click.option("--max-body", type=click.IntRange(1), default=1 << 20, help="Maximum bytes per request.")
@click.option(
    "--receive-timeout",
    type=click.FloatRange(0.1),
    default=15.0,
    help="Seconds within which a request must arrive completely.",
)
@click.option(
    "--send-timeout",
    type=click.FloatRange(0.1),
    default=10.0,
    help="Seconds within which a client must read the data sent to it.",
)
@click.option(
    "--context-policy",
    type=click.Choice(["slide", "error"]),
    default="slide",
    help="When the context is full: 'slide' drops its older half and continues; 'error' refuses requests that do not "
    "fit.",
)
@preset_option
@corpus_option
@vocab_option
@set_option
def serve_command(
    checkpoints, host, port, name, api_key_file, api_key, insecure, hosts, origins, streams, queue, max_tokens,
    max_choices, max_prompt, max_body, receive_timeout, send_timeout, context_policy, preset, corpus, vocab, sets,
):  # fmt: skip
    """Serve CHECKPOINT, or the best checkpoint of the newest run, over an OpenAI-compatible API with a web page.

    Several checkpoints can be served together. The field `model` of a request chooses one of them.

    \b
    mlxgpt serve
    mlxgpt serve runs/long --port 8000 --context-policy error
    mlxgpt serve runs/long/best.safetensors runs/long/checkpoint.safetensors
    curl localhost:8080/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "ROMEO:"}'

    The web page is at /. The API key can also be set by the environment variable MLXGPT_API_KEY. The log has one line
    per request, without the text of the request. After a first SIGINT, SIGTERM or SIGHUP, texts in progress have four
    seconds to finish. A second signal ends them at once.
    """
    try:
        from mlx_gpt import serve
        from mlx_gpt.serve.schema import Limits
        from mlx_gpt.web import server
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}; install it with: pip install -e '.[serve]'") from None
    access = access_of(host, api_key_file, api_key, insecure, hosts, origins)
    if name is not None and not (name.strip() and name.isprintable()):
        raise UserError(f"--name {name!r} is not allowed; give printable characters, not only spaces")
    paths = checkpoints or (run.newest_checkpoint(),)
    if name is not None and len(paths) > 1:
        raise UserError(f"--name {name!r} names one checkpoint, but {len(paths)} are given; leave it out")
    ids = [name] if name is not None else model_ids(paths)
    device.return_freed_memory()
    runs = [_load(path, preset, corpus, vocab, sizes_from(sets)) for path in paths]
    _require_memory([loaded.config.model for loaded in runs], streams)
    limits = Limits(
        max_tokens=max_tokens,
        max_choices=max_choices or math.inf,
        max_prompt_chars=max_prompt,
        max_body=max_body,
        slides=context_policy == "slide",
    )
    listening = server.bind(host, port)
    address = address_of(listening, host)
    models = [_served(*loaded, max_tokens) for loaded in zip(paths, ids, runs, strict=True)]
    serve.serve(
        listening,
        models,
        num_slots=streams,
        max_waiting=queue,
        limits=limits,
        access=access,
        deadlines=server.Deadlines(receive=receive_timeout, send=send_timeout),
        log=lambda line: note(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}"),
        on_ready=lambda _stop: click.echo(
            f"{', '.join(ids)} at {address}  (base URL for OpenAI clients: {address}/v1; Ctrl-C stops the server)"
        ),
    )


def _load(path: Path, preset: str | None, corpus: tuple[str, ...], vocab: str | None, sizes: dict[str, int]):
    """Loads a checkpoint to serve.

    Raises:
        UserError: The checkpoint cannot be loaded, has no tokenizer, or needs too much memory.
    """
    loaded = api.load(path, preset, corpus=corpus or None, vocab=vocab, **sizes)
    if loaded.tokenizer is None:
        raise UserError(
            f"{path}: the checkpoint has no tokenizer; give the text it was trained on with --corpus, or its "
            "vocabulary with --vocab"
        )
    run.require_context(loaded)
    return loaded


def _served(path: Path, id: str, loaded, max_tokens: int):
    """Returns a loaded checkpoint as a serve.Served, and says that it will be compiled."""
    from mlx_gpt.serve import Served

    card = model_card(loaded, path, id, max_tokens)
    note(f"{path}: {card['meta']['n_params']:,} parameters; compiling")
    from mlx_gpt.data.excerpts import excerpts

    examples = partial(excerpts, loaded.config.data.corpus, loaded.header.corpus)
    return Served(network=loaded.model, tokenizer=loaded.tokenizer, card=card, examples=examples)


def model_ids(paths: Sequence[Path]) -> list[str]:
    """Returns an id for each checkpoint.

    It is the name of the run folder for the folder itself, best.safetensors and checkpoint.safetensors, and otherwise
    the name of the file without its ending. If several checkpoints have the same id, the name of the file is appended,
    as in "long/best". A run folder stands for its best checkpoint.

    Raises:
        UserError: Two paths have the same id even so.
    """
    full = [path.resolve() for path in paths]
    short = [p.parent.name if p.stem in ("best", "checkpoint") else p.name if p.is_dir() else p.stem for p in full]
    files = ["best" if path.is_dir() else path.stem for path in full]
    ids = [f"{id}/{file}" if short.count(id) > 1 else id for id, file in zip(short, files, strict=True)]
    for id, path in zip(ids, paths, strict=True):
        if ids.count(id) > 1:
            raise UserError(f"{path}: another checkpoint has the id {id!r} too; leave it out, or rename one of the two")
    return ids


def model_card(loaded, path: Path, id: str, max_tokens: int) -> dict:
    """Returns the description of a checkpoint that the route /v1/models sends.

    Args:
        loaded: The loaded checkpoint.
        path: The path it was loaded from.
        id: The id of the model.
        max_tokens: The limit of --max-tokens.
    """
    from mlx_gpt.serve.schema import TURN

    header, config = loaded.header, loaded.config
    return {
        "id": id,
        "object": "model",
        "created": int(path.stat().st_mtime),
        "owned_by": "mlxgpt",
        "meta": {
            "n_params": model.cost.num_params(config.model, header.vocab_size),
            "n_ctx": config.model.block_size,
            **model.cost.decoding_bytes(config.model),
            "n_vocab": header.vocab_size,
            "n_layer": config.model.n_layer,
            "n_head": config.model.n_head,
            "n_embd": config.model.n_embd,
            "corpus": ", ".join(Path(spec).name for spec in config.data.corpus) if header.corpus else None,
            "iteration": header.step,
            "val_loss": round(header.best_loss, 4) if math.isfinite(header.best_loss) else None,
            "chat_template": TURN,
            "max_tokens": max_tokens,
        },
    }


def _require_memory(shapes: Sequence, streams: int) -> None:
    """Raises OutOfRoom if the decoding states of `streams` texts of each model need more memory than MLX may use."""
    needed = sum(model.cost.state_bytes(shape, streams) for shape in shapes)
    limit = device.mlx.mx.get_memory_limit()
    if needed > limit:
        raise OutOfRoom(
            f"--streams {streams} needs {needed / 1e9:.1f} GB for the decoding state, but MLX may use only "
            f"{limit / 1e9:.1f} GB here; lower --streams"
        )
