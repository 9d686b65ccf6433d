"""`mlxgpt rl`: trains a model with rewards of the texts that it writes."""

from pathlib import Path

import click

from mlx_gpt import run
from mlx_gpt.cli.options import (
    alert_option,
    corpus_option,
    folder_option,
    json_option,
    log_option,
    set_option,
    settings_from,
    watch_option,
)
from mlx_gpt.cli.outputs import Channels
from mlx_gpt.cli.train import carry_out, require_watchable
from mlx_gpt.errors import UserError
from mlx_gpt.run.request import NEWEST
from mlx_gpt.run.rl import rl_request

# Option -> the setting that it changes, in addition to those of options.FLAGS.
FLAGS = {
    "objective": "train.objective",
    "reward": "rl.reward",
    "prompts": "rl.prompts",
    "language": "rl.language",
    "groups": "rl.prompts_per_batch",
    "samples": "rl.group_size",
    "max_tokens": "rl.max_tokens",
    "temp": "rl.temperature",
    "kl": "rl.kl_weight",
}


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--reward", metavar="NAME|FILE", help="compiles, tests, or a Python file.  [default: compiles]")
@click.option("--objective", metavar="NAME", help="grpo, dr-grpo, gspo, maxrl or rft.  [default: grpo]")
@click.option("--prompts", metavar="FILE", help="JSON Lines with a prompt each.  [default: 256 beginnings of programs]")
@click.option("--language", metavar="NAME", help="Language of the programs: python or rust.  [default: python]")
@click.option("--execute", is_flag=True, help="Allow the reward to execute programs of the model, in a sandbox.")
@click.option("--groups", type=int, help="Prompts in a batch.  [default: 8]")
@click.option("--samples", type=int, help="Texts that are drawn for each prompt.  [default: 8]")
@click.option("--max-tokens", type=int, help="Most tokens of a text.  [default: 128]")
@click.option("--temp", type=float, help="Temperature of the draws.  [default: 1]")
@click.option("--kl", type=float, help="Weight of the divergence from CHECKPOINT.  [default: 0.02]")
@click.option("--iters", type=int, help="Total number of updates.  [default: 100]")
@click.option("--batch", type=int, help="Texts that are computed at once, to limit memory.  [default: 16]")
@click.option("--lr", type=float, help="Learning rate.  [default: 1e-4]")
@click.option("--seed", type=int, help="Random seed of the prompts and the texts.")
@corpus_option
@click.option(
    "--out", metavar="DIR", callback=folder_option, help="Run folder.  [default: runs/PRESET-CORPUS-OBJECTIVE]"
)
@click.option(
    "--resume", is_flag=False, flag_value=NEWEST, metavar="[DIR]", help="Run folder to continue.  [default: the newest]"
)
@set_option
@log_option
@alert_option
@watch_option
@click.option("--plan", is_flag=True, help="Draw one batch, time a few steps, print memory and ETA, and stop.")
@json_option
def rl_command(checkpoint, out, resume, sets, logs, alert, watched, plan, as_json, execute, **flags):
    """Train CHECKPOINT with rewards of the texts that it writes.

    By default, CHECKPOINT is the best checkpoint of the newest run, and its texts are Python functions that are
    rewarded if they compile. The validation loss on the corpus is measured before and after the training.

    \b
    mlxgpt rl runs/model-s-stdlib --reward compiles --objective grpo
    mlxgpt rl model.safetensors --reward reward.py --prompts prompts.jsonl

    The folder of the run gets rollouts.jsonl, with every text and its reward, beside the files of mlxgpt train.
    """
    require_watchable(watched, plan)
    channels = Channels(logs=logs, alert=alert)
    if not resume:
        checkpoint = checkpoint or run.newest_checkpoint()
    request = request_of(checkpoint, out, resume, sets, execute, **flags)
    carry_out(request, plan, as_json, channels, watched)


def request_of(checkpoint, out, resume, sets, execute, **flags) -> run.Request:
    """Converts the options of the command to a request. Raises UserError if they contradict each other."""
    given = {name: flags.pop(name) for name in FLAGS}
    settings = settings_from(sets, flags)
    for name, value in given.items():
        if value is not None:
            if FLAGS[name] in settings:
                raise UserError(f"--{name.replace('_', '-')} and --set {FLAGS[name]} are the same; give one of them")
            settings[FLAGS[name]] = value
    if execute:
        settings["rl.execute"] = True
    return rl_request(settings, checkpoint=checkpoint, out=out, resume=resume)
