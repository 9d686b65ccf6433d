"""Compares two versions of mlxgpt bit for bit, through the command line.

`python experiments/identity.py OLD [NEW]`: OLD and NEW are git revisions, or folders that contain mlx_gpt. The default
of NEW is the working tree of this file. Both sides run the same commands on this machine: they train, generate, serve
and resume. Losses, gradient norms, tensors and texts must be equal. The headers of checkpoints are not compared,
because their fields may be renamed. NEW also generates from OLD's checkpoint and resumes OLD's run. The script prints
one line per scenario: "equal", or the first difference. The exit code is 1 if a scenario differs or fails.

The text is `shakespeare` if MLXGPT_CORPUS_DIR contains it, otherwise `pydocs`. A first run compiles kernels and takes
minutes. Later runs find the kernels in the user's cache.
"""

import argparse
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.numpy
from sides import CORPUS, ROOT, Failed, Side, both, last_line

STEPS = 20
COMMON = f"--preset model-xs --corpus {CORPUS} --batch 4 --iters {STEPS} --eval-every 10 --sample-every 0"
COMMON += " --set model.n_embd=32 --set model.n_head=2 --set model.n_layer=2 --set model.block_size=32"
COMMON += " --set train.eval_windows=16 --set optimizer.warmup_steps=4"
ALL_EXTENSIONS = ("positions=rotary", "mlp=swiglu", "norm_weights=true", "final_norm=true", "qk_norm=true")
# Name of a scenario -> options added to COMMON. No setting may be in both, because a setting given twice is an error.
TRAININGS = {
    "muon, average": "--set optimizer.name=muon --set optimizer.ema_decay=0.99 --set model.dropout=0.0",
    "adamw": "--set optimizer.name=adamw --set model.dropout=0.0",
    "adamw, cosine, clipped by element": "--set optimizer.name=adamw --set optimizer.schedule=cosine "
    "--set optimizer.clip_mode=element --set optimizer.max_grad_norm=0.01",
    "drawn with replacement": "--set train.shuffle=false",
    "attention by blocks": "--set speed.attention=blocks",
    "attention fused": "--set speed.attention=fused",
    "dropout": "--set model.dropout=0.3",
    "accumulation": "--accum 3",
    "remat": "--set speed.remat=true --set model.dropout=0.2",
    "bfloat16": "--dtype bfloat16",
    "byte pairs": "--bpe 300",
    "rotary, qk_norm": "--set model.positions=rotary --set model.qk_norm=true",
    "swiglu": "--set model.mlp=swiglu",
    "norm_weights, final_norm": "--set model.norm_weights=true --set model.final_norm=true",
    "final_norm, tied_head": "--set model.final_norm=true --set model.tied_head=true",
    "all extensions": " ".join(f"--set model.{setting}" for setting in (*ALL_EXTENSIONS, "tied_head=true")),
}
LION = {"lion": "--set optimizer.name=lion --lr 3e-4"}
WRITERS = ("muon, average", "byte pairs", "all extensions")  # scenarios of TRAININGS whose models generate text
REQUESTS = (
    {"prompt": "The ", "seed": 3, "max_tokens": 40, "temperature": 0.8, "logprobs": 3, "echo": True},
    {"prompt": "The ", "seed": 4, "max_tokens": 80, "temperature": 1.0, "top_p": 0.9, "logprobs": 5},
    {"prompt": "", "max_tokens": 20, "temperature": 0.0, "logprobs": 1},
    {"prompt": ["The ", "And so"], "seed": 5, "max_tokens": 20, "n": 2},
)


def train(side: Side, *arguments: str, out: str, steps: int = STEPS) -> dict:
    """Trains a model. Returns the numbers of its reports and the tensors of its checkpoints, as {description: value}.

    Args:
        side: The version that trains.
        arguments: Arguments of `mlxgpt train`.
        out: The run folder, relative to the side's home.
        steps: The last step that must have been reported.

    Raises:
        Failed: The command failed, or the loss of the last step is missing or not finite.
    """
    lines = [json.loads(line) for line in side.run("train", "--json", *arguments).splitlines()]
    found = {}
    for line in lines:
        if line["report"] == "step":
            found |= {f"{key} of step {line['step']}": line[key] for key in ("loss", "grad_norm")}
        elif line["report"] == "eval":
            found[f"validation loss at step {line['step']}"] = line["loss"]
    if found.get(f"loss of step {steps}") is None:
        raise Failed(f"{side.name} reports no finite loss of step {steps}")
    for name in ("checkpoint", "best"):
        tensors = safetensors.numpy.load_file(side.home / out / f"{name}.safetensors")
        shaped = {key: (str(t.dtype), t.shape, t.tobytes()) for key, t in tensors.items()}
        found |= {f"{key} of {name}.safetensors": shaped[key] for key in sorted(shaped)}
    return found


class Comparison:
    """Runs scenarios on both sides, prints the result of each, and counts those that differ."""

    def __init__(self, old: Side, new: Side):
        self.old, self.new, self.differing, self.count = old, new, 0, 0

    def __call__(self, name: str, scenario: Callable[[Side], dict], of_new: Callable[[Side], dict] | None = None):
        """Compares the results of a scenario on both sides.

        Args:
            name: Name of the scenario.
            scenario: Runs on a side and returns its result, as {description: value}.
            of_new: The scenario for the new side, if it is not the same. Its result is compared with that of
                `scenario` on the old side.
        """
        start = time.perf_counter()
        try:
            difference = first_difference(scenario(self.old), (of_new or scenario)(self.new))
        except (Failed, KeyError, OSError) as error:
            difference = f"{type(error).__name__}: {error}"
        self.count += 1
        self.differing += difference is not None
        print(f"{name:<40} {difference or 'equal'}  ({time.perf_counter() - start:.0f} s)", flush=True)


def first_difference(old: dict, new: dict) -> str | None:
    """Describes the first difference, in the order of the results. Returns None if all values are equal."""
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in old or key not in new:
            return f"{key} is only in {'old' if key in old else 'new'}"
        if old[key] != new[key]:
            values = "" if isinstance(old[key], tuple) else f": {str(old[key])[:90]!r} and {str(new[key])[:90]!r}"
            return f"{key} differs{values}"
    return None


def slug(name: str) -> str:
    """Returns the name of a scenario as a folder name: "muon, average" becomes "muon-average"."""
    return re.sub(r"\W+", "-", name)


def compare_trainings(compare: Comparison, trainings: dict[str, str]) -> None:
    """Trains with each of `trainings` and compares the runs. The run folders are kept for other scenarios."""
    for name, settings in trainings.items():
        arguments = (*f"{COMMON} {settings}".split(), "--out", slug(name))
        compare(name, lambda side, a=arguments, n=name: train(side, *a, out=slug(n)))


def compare_resumed(compare: Comparison) -> None:
    """Compares runs that ended halfway and were resumed.

    They are compared between the sides, and on each side with a run that was not interrupted. NEW also resumes the run
    of OLD.
    """
    # With decay_start=1.0 the learning rate does not depend on the length of the run. Otherwise a run of STEPS / 2
    # updates would differ from the first half of a run of STEPS updates.
    constant = [*COMMON.split(), "--set", "optimizer.decay_start=1.0", "--set", "optimizer.ema_decay=0.99"]
    half = [str(STEPS // 2) if argument == str(STEPS) else argument for argument in constant]

    def resumed(side: Side, of: Side | None = None) -> dict:
        shutil.copytree((of or side).home / "half", side.home / "resumed", dirs_exist_ok=True)
        return train(side, "--resume", "resumed", "--iters", str(STEPS), out="resumed")

    def whole(side: Side) -> dict:
        return train(side, *constant, "--out", "whole", out="whole")

    def later(found: dict) -> dict:
        """Removes the reports of the first half of the run. A resumed run does not report these steps again."""
        return {k: v for k, v in found.items() if not (m := re.search(r"step (\d+)$", k)) or int(m[1]) > STEPS // 2}

    compare("half", lambda side: train(side, *half, "--out", "half", out="half", steps=STEPS // 2))
    compare("resumed", resumed)
    compare("resumed by new from old's half", resumed, lambda side: resumed(side, compare.old))
    compare("whole beside resumed, old", lambda side: later(whole(side)), lambda _: later(resumed(compare.old)))
    compare("whole beside resumed, new", lambda _: later(whole(compare.new)), lambda side: later(resumed(side)))


def compare_texts(compare: Comparison) -> None:
    """Compares the texts that the models of WRITERS generate, with `generate` and with `serve`."""
    for name in WRITERS:
        run = slug(name)
        compare(f"generate, {name}", lambda side, r=run: write(side, side.home / r))
        compare(f"generate by new from old's, {name}", lambda side, r=run: write(side, compare.old.home / r))
        compare(f"serve, {name}", lambda side, r=run: serve(side, side.home / r))


def write(side: Side, run: Path) -> dict:
    """Returns five sampled texts with different seeds, longer than the context, and one greedy text."""
    drawn = "--samples 5 --seed 0 --max-tokens 100 --temp 0.9 --top-p 0.95 --top-k 40".split()
    texts = side.run("generate", str(run), "--json", "--prompt", "The ", *drawn).splitlines()
    found = {f"text of seed {seed}": json.loads(text)["completion"] for seed, text in enumerate(texts)}
    likeliest = side.run("generate", str(run), "--json", "--prompt", "And", "--temp", "0", "--seed", "0")
    return found | {"likeliest text": json.loads(likeliest)["completion"]}


def serve(side: Side, run: Path) -> dict:
    """Sends REQUESTS to /v1/completions one after another. Returns the fields of the choices in the responses."""
    with serving(side, run) as address:
        found = {}
        for i, body in enumerate(REQUESTS):
            data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{address}/v1/completions", data, kind)
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
            for choice in answer["choices"]:
                for key in ("text", "logprobs", "finish_reason"):
                    found[f"{key} of choice {choice['index']} of request {i}"] = choice[key]
        return found


@contextlib.contextmanager
def serving(side: Side, run: Path) -> Iterator[str]:
    """A context that runs `mlxgpt serve` on a free port of the loopback interface and yields its URL."""
    arguments = ("-m", "mlx_gpt", "serve", str(run), "--port", "0")
    with tempfile.TemporaryFile("w+") as errors, side.start(*arguments, stderr=errors) as server:
        try:
            found = re.search(r"http://[\d.:]+", server.stdout.readline())
            if not found:
                raise Failed(f"{side.name} does not serve: {last_line(errors)}")
            yield found[0]
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a git revision, or a folder that contains mlx_gpt")
    parser.add_argument("new", nargs="?", default=str(ROOT), help="likewise (default: the working tree)")
    help = "also train with Lion (off by default: in versions without -ffp-contract=off, two Lion runs can differ)"
    parser.add_argument("--lion", action="store_true", help=help)
    chosen = parser.parse_args()
    start = time.perf_counter()
    with both(chosen.old, chosen.new) as sides:
        compare = Comparison(*sides)
        compare_trainings(compare, TRAININGS | (LION if chosen.lion else {}))
        compare_resumed(compare)
        compare_texts(compare)
    equal = compare.count - compare.differing
    print(f"{equal} of {compare.count} scenarios equal, {time.perf_counter() - start:.0f} s")
    sys.exit(compare.differing > 0)


if __name__ == "__main__":
    main()
