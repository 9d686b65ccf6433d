"""`mlxgpt serve`: serves a checkpoint over an OpenAI-compatible HTTP API with a web page."""

import math
import time
from pathlib import Path

import click

from mlx_gpt import api, device, model, run
from mlx_gpt.cli.access import access_of, access_options, address_of
from mlx_gpt.cli.options import corpus_option, note, preset_option, set_option, sizes_from, vocab_option
from mlx_gpt.errors import OutOfRoom, UserError


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@access_options(port=8080)
@click.option("--name", help="Model id in the API.  [default: name of the run folder or file]")
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
    checkpoint, host, port, name, api_key_file, api_key, insecure, hosts, origins, streams, queue, max_tokens,
    max_choices, max_prompt, max_body, receive_timeout, send_timeout, context_policy, preset, corpus, vocab, sets,
):  # fmt: skip
    """Serve CHECKPOINT, or the best checkpoint of the newest run, over an OpenAI-compatible API with a web page.

    \b
    mlxgpt serve
    mlxgpt serve runs/long --port 8000 --context-policy error
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
    path = checkpoint or run.newest_checkpoint()
    loaded = api.load(path, preset, corpus=corpus or None, vocab=vocab, **sizes_from(sets))
    if loaded.tokenizer is None:
        raise UserError(
            f"{path}: the checkpoint has no tokenizer; give the text it was trained on with --corpus, or its "
            "vocabulary with --vocab"
        )
    run.require_context(loaded)
    _require_memory(loaded.config.model, streams)
    limits = Limits(
        max_tokens=max_tokens,
        max_choices=max_choices or math.inf,
        max_prompt_chars=max_prompt,
        max_body=max_body,
        slides=context_policy == "slide",
    )
    listening = server.bind(host, port)
    address, card = address_of(listening, host), model_card(loaded, path, name, max_tokens)
    note(f"{path}: {card['meta']['n_params']:,} parameters; compiling")
    serve.serve(
        listening,
        loaded.model,
        loaded.tokenizer,
        card,
        num_slots=streams,
        max_waiting=queue,
        limits=limits,
        access=access,
        deadlines=server.Deadlines(receive=receive_timeout, send=send_timeout),
        log=lambda line: note(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}"),
        on_ready=lambda _stop: click.echo(
            f"{card['id']} at {address}  (base URL for OpenAI clients: {address}/v1; Ctrl-C stops the server)"
        ),
    )


def model_card(loaded, path: Path, name: str | None, max_tokens: int) -> dict:
    """Returns the description of a checkpoint that the route /v1/models sends.

    Args:
        loaded: The loaded checkpoint.
        path: The path it was loaded from.
        name: The id of the model. None takes the name of the run folder for the folder itself, best.safetensors and
            checkpoint.safetensors, and otherwise the name of the file without its ending.
        max_tokens: The limit of --max-tokens.
    """
    from mlx_gpt.serve.schema import TURN

    header, config = loaded.header, loaded.config
    path = path.resolve()
    own_name = path.parent.name if path.stem in ("best", "checkpoint") else path.name if path.is_dir() else path.stem
    return {
        "id": name or own_name,
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


def _require_memory(shape, streams: int) -> None:
    """Raises OutOfRoom if the decoding states of `streams` texts need more memory than MLX may use."""
    needed, limit = model.cost.state_bytes(shape, streams), device.mlx.mx.get_memory_limit()
    if needed > limit:
        raise OutOfRoom(
            f"--streams {streams} needs {needed / 1e9:.1f} GB for the decoding state, but MLX may use only "
            f"{limit / 1e9:.1f} GB here; lower --streams"
        )
