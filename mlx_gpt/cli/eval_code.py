"""`mlxgpt eval-code`: measures how well the code that a checkpoint writes parses, compiles and does what it should."""

from pathlib import Path

import click

from mlx_gpt import api, run
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
from mlx_gpt.errors import UserError

NUM_EXAMPLES, MAX_LINES = 3, 16


@click.command("eval-code")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--language", type=click.Choice(["python", "rust", "all"]), default="all", help="Language of the problems."
)
@click.option(
    "--problems",
    metavar="FILE|rust-basics",
    help="A file of problems with tests in the format of HumanEval or MBPP (.jsonl, .jsonl.gz, .json), or sixteen Rust "
    "problems of mlxgpt's own.  [default: sixteen prompts for each language]",
)
@click.option("--limit", type=click.IntRange(1), help="Evaluate only the first problems.")
@click.option("--samples", "-n", type=click.IntRange(1, 10_000), default=16, help="Samples for each problem.")
@click.option(
    "--temp",
    "--temperature",
    "temperature",
    type=float,
    default=0.8,
    help="Sampling temperature; 0 takes the most likely token.",
)
@click.option("--top-k", type=int, default=50, help="Sample from the k most likely tokens; 0 keeps all.")
@click.option("--max-tokens", type=click.IntRange(1, 100_000), default=256, help="Maximum number of tokens per sample.")
@click.option("--seed", type=int, default=0, help="Random seed; the same seed gives the same samples.")
@click.option("--k", "ks", type=click.IntRange(1), multiple=True, default=(1, 10), help="Estimate pass@k; repeatable.")
@click.option("--execute", is_flag=True, help="Execute the programs with the tests of their problems, in a sandbox.")
@click.option(
    "--baselines",
    is_flag=True,
    help="Evaluate also the untrained network, and a character 5-gram model of the training text.",
)
@click.option("--history", is_flag=True, help="Append the result to eval-code.jsonl in the run folder.")
@preset_option
@corpus_option
@vocab_option
@set_option
@json_option
def eval_code_command(checkpoint, baselines, history, preset, corpus, vocab, sets, as_json, **options):
    """Measure how well the code that CHECKPOINT writes parses, compiles and does what it should.

    By default, CHECKPOINT is the best checkpoint of the newest run. It completes each prompt several times. Programs
    are parsed and compiled, but executed only with --execute: they are then run with the tests of their problems.

    \b
    mlxgpt eval-code runs/code --language python
    mlxgpt eval-code runs/code --problems HumanEval.jsonl.gz --language python --execute
    """
    from mlx_gpt.code.settings import Settings

    settings = Settings(**options)
    path = run.checkpoint_in(checkpoint or run.newest_checkpoint())
    folder = _run_folder(path) if history else None
    model = run.load_with_tokenizer(path, preset, sizes_from(sets), corpus, vocab)
    report = api.evaluate_code(model, settings, baselines=baselines, corpus=corpus or None, note=note)
    if as_json:
        echo_json(report.to_json(str(path)))
    else:
        _show(report, path)
    if folder:
        _record(folder, report.summary(str(path)), as_json)


def _run_folder(path: Path) -> Path:
    """Returns the run folder of a checkpoint. Raises UserError if there is none, before anything is drawn."""
    if path.is_dir() or not (path.parent / "run.toml").is_file():
        raise UserError(f"{path}: is in no run folder, so --history has no place for the result; leave out --history")
    return path.parent


def _show(report, path: Path) -> None:
    """Prints the tables, the examples and the summary line."""
    from mlx_gpt.watch.code import share_text, show_prompts, show_totals
    from mlx_gpt.watch.console import Terminal

    whole, console = report.to_json(str(path)), Terminal()
    show_prompts(console, whole["samples_by_prompt"])
    show_totals(console, {"checkpoint": whole["totals"]} | whole["baselines"])
    for sample in _examples(report.model.samples):
        _show_example(sample)
    totals = whole["totals"]
    for k, found in totals["pass_at_k"].items():
        if found and found["left_out"]:
            note(
                f"pass@{k}: {len(found['left_out'])} problems with fewer than {k} samples are left out; raise --samples"
            )
    tests = f"{share_text(totals['passes'])} pass" if report.settings.execute else "nothing was executed"
    click.echo(
        f"{path}: {totals['samples']} samples of {len(whole['samples_by_prompt'])} prompts: "
        f"in percent, {share_text(totals['compiles'])} compile, {share_text(totals['valid'])} are valid, {tests}"
    )


def _examples(samples) -> list:
    """Returns the first samples of problems at equal distances, so that they are not chosen by their quality."""
    distance = max(len(samples) // NUM_EXAMPLES, 1)
    return list(samples[::distance])[:NUM_EXAMPLES]


def _show_example(sample) -> None:
    from mlx_gpt.watch.code import printable

    problem = sample.draft.problem
    fault = sample.findings.error or f"{problem.entry_point} is not defined, or does nothing"
    click.echo(f"--- {problem.id}: {'valid' if sample.valid else printable(fault)[:100]}")
    lines = printable(sample.program).splitlines()
    click.echo("\n".join([*lines[:MAX_LINES], *["..."] * (len(lines) > MAX_LINES)]))


def _record(folder: Path, summary: dict, quiet: bool) -> None:
    """Appends a result to the history of a run, and prints the results of its checkpoints unless `quiet`."""
    from mlx_gpt.code.history import append, comparable
    from mlx_gpt.watch.code import show_history
    from mlx_gpt.watch.console import Terminal

    append(folder, summary)
    if quiet:
        return
    results, others = comparable(folder, summary)
    show_history(Terminal(), results)
    if others:
        note(f"{others} results with other settings are not shown")
