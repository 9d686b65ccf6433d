"""`mlxgpt serve`: a checkpoint behind OpenAI's HTTP interface, and a page to write with."""

import math
import re
import socket
import time
from pathlib import Path

import click

from mlx_gpt import api, device, model, run
from mlx_gpt.cli.options import corpus_option, note, preset_option, set_option, sizes_from, vocab_option
from mlx_gpt.errors import BadFile, OutOfRoom, UserError


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", help="Address to listen on. Any other than loopback needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="Port to listen on; 0 takes a free one.")
@click.option("--name", help="Id of the model.  [default: name of the run]")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="File with the key that requests must carry.")
@click.option("--api-key", envvar="MLXGPT_API_KEY", hidden=True)
@click.option("--insecure", is_flag=True, help="Listen beyond loopback without a key.")
@click.option("--allow-host", "hosts", multiple=True, help="Further host name to accept; repeatable.")
@click.option("--allow-origin", "origins", multiple=True, help="Further web origin to accept; repeatable.")
@click.option("--streams", type=click.IntRange(1, 256), default=16, help="Texts generated at once; 1 is fastest alone.")
@click.option("--queue", type=click.IntRange(0), default=64, help="Texts that may wait; more are refused for now.")
@click.option("--max-tokens", type=click.IntRange(1), default=4096, help="Tokens per text at most.")
@click.option("--max-choices", type=click.IntRange(1), default=16, help="Texts per request at most, n times prompts.")
@click.option("--max-prompt", type=click.IntRange(1), default=100_000, help="Characters per prompt at most.")
@click.option("--max-body", type=click.IntRange(1), default=1 << 20, help="Bytes per request at most.")
@click.option(
    "--receive-timeout", type=click.FloatRange(0.1), default=15.0, help="Seconds that a request may take to arrive."
)
@click.option(
    "--send-timeout", type=click.FloatRange(0.1), default=10.0, help="Seconds that a client may leave text unread."
)
@click.option(
    "--context-policy",
    type=click.Choice(["slide", "error"]),
    default="slide",
    help="Past the context, continue from its newer half, or refuse what does not fit.",
)
@preset_option
@corpus_option
@vocab_option
@set_option
def serve_command(
    checkpoint, host, port, name, api_key_file, api_key, insecure, hosts, origins, streams, queue, max_tokens,
    max_choices, max_prompt, max_body, receive_timeout, send_timeout, context_policy, preset, corpus, vocab, sets,
):  # fmt: skip
    """Serve CHECKPOINT, or the best checkpoint of the newest run, to OpenAI's clients and to a browser.

    \b
    mlxgpt serve
    mlxgpt serve runs/long --port 8000 --context-policy error
    curl localhost:8080/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "ROMEO:"}'

    The page is at /. The environment variable MLXGPT_API_KEY can also give the key. Each request is logged in one line,
    without its text. The first signal gives running texts four seconds to finish, the second ends them.
    """
    try:
        from mlx_gpt import serve
        from mlx_gpt.serve.schema import Limits
        from mlx_gpt.web import server
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}; pip install -e '.[serve]'") from None
    access = _access(host, _key(api_key_file, api_key), insecure, hosts, origins)
    if name is not None and not (name.strip() and name.isprintable()):
        raise UserError(f"--name {name!r} is no name; give one of signs that can be printed")
    path = checkpoint or run.newest_checkpoint()
    loaded = api.load(path, preset, corpus=corpus or None, vocab=vocab, **sizes_from(sets))
    if loaded.tokenizer is None:
        raise UserError(f"{path} holds no tokenizer; name its text with --corpus, or its vocab.json with --vocab")
    _require_memory(loaded.config.model, streams)
    limits = Limits(
        max_tokens=max_tokens,
        max_choices=min(max_choices, streams + queue),
        max_prompt_chars=max_prompt,
        max_body=max_body,
        slides=context_policy == "slide",
    )
    listening = server.listen(host, port)
    address, card = _address(listening, host), model_card(loaded, path, name, max_tokens)
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
        on_ready=lambda _stop: click.echo(f"{card['id']} at {address}  (OpenAI's clients: {address}/v1; Ctrl-C stops)"),
    )


def model_card(loaded, path: Path, name: str | None, max_tokens: int) -> dict:
    """What /v1/models says about a checkpoint."""
    from mlx_gpt.serve.schema import TURN

    header, config = loaded.header, loaded.config
    path = path.resolve()
    own_name = path.parent.name if path.stem in ("best", "checkpoint") else path.stem
    return {
        "id": name or own_name,
        "object": "model",
        "created": int(path.stat().st_mtime),
        "owned_by": "mlxgpt",
        "meta": {
            "n_params": model.cost.num_params(config.model, header.vocab_size),
            "n_ctx": config.model.block_size,
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


def _access(host: str, key: str | None, insecure: bool, hosts: tuple[str, ...], origins: tuple[str, ...]):
    """Who may send requests. Raises UserError for a public address without a key."""
    from mlx_gpt.web.guard import Access, is_loopback

    if not host:
        raise UserError("--host is empty; name an address, as 127.0.0.1")
    for given in hosts:
        if not re.fullmatch(r"[\w.-]+|\[[\da-fA-F:]+\]", given):
            raise UserError(f"--allow-host {given!r} is no host; give a name alone, as mac.example")
    for given in origins:
        if not re.fullmatch(r"https?://[^/\s]+", given):
            raise UserError(f"--allow-origin {given!r} is no origin; give scheme and host, as https://mac.example")
    if not is_loopback(host) and key is None and not insecure:
        raise UserError(
            f"--host {host} lets others in; give them a key with --api-key-file or MLXGPT_API_KEY, or say --insecure"
        )
    return Access(host=host, key=key, hosts=tuple(map(str.lower, hosts)), origins=origins)


def _address(listening: socket.socket, host: str) -> str:
    """The address for a browser. Of a server on all addresses it has the machine's name."""
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


def _require_memory(shape, streams: int) -> None:
    """Raises OutOfRoom if what the layers remember of `streams` texts needs more memory than MLX may use."""
    needed, limit = model.cost.state_bytes(shape, streams), device.mlx.mx.get_memory_limit()
    if needed > limit:
        raise OutOfRoom(
            f"--streams {streams} keeps {needed / 1e9:.1f} GB of keys and values, MLX may use {limit / 1e9:.1f} GB "
            "here; lower it"
        )


def _key(path: Path | None, key: str | None) -> str | None:
    """The key in the file, or else in the environment."""
    if path:
        try:
            key = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadFile(
                f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'not text'}; name a file with the key"
            ) from None
        if not key:
            raise BadFile(f"--api-key-file {path}: empty; write a key into it")
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key and key):
        raise UserError("the API key is empty or has spaces or signs that no header holds; choose another")
    return key
