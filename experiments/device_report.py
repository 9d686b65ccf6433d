"""Tests and measures this machine, and writes one page about it that can be sent to others.

    python experiments/device_report.py [--quick] [--out DIR] [--preset NAME]

It writes DIR/report.json and DIR/report.md, by default to runs/device-report. It takes about ten minutes, or about
three with --quick, which runs some of the tests and short measurements of model-xs. Each part runs in a process of its
own with a time limit. A part that fails or runs out of time is a line of the report. The tuner stores the settings that
it finds, as `mlxgpt bench --tune` does. The report names the hardware and the versions, and no user, host or path.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRIVATE = ("blas_path", "kept")  # facts with paths of this machine
QUICK_TESTS = ["tests/model", "tests/device", "tests/train/test_golden.py", "tests/train/test_step.py"]
Facts = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the report.

    Attributes:
        name: Its name in the report.
        command: The arguments of Python. The process prints its facts as JSON, unless `read` reads its output.
        limit: Seconds until the process and its children are killed.
        show: Makes the lines of the page from the facts.
        read: Makes the facts from the output.
        environment: Variables added to the environment.
    """

    name: str
    command: list[str]
    limit: int
    show: Callable[[Facts], Iterator[str]]
    read: Callable[[str], Facts] = json.loads
    environment: dict[str, str] = field(default_factory=dict)


def parts(preset: str, quick: bool, out: Path) -> list[Part]:
    """Returns the parts of the report in the order in which they run."""
    short, mlxgpt = ["--quick"] * quick, ["-m", "mlx_gpt"]
    here = [str(Path(__file__)), "--preset", preset, *short]
    tests = ["-m", "pytest", "-rfE", "--tb=line", "-p", "no:cacheprovider", *(QUICK_TESTS if quick else [])]
    bench = [*mlxgpt, "bench", "--preset", preset, "--json"]
    return [
        Part(name="doctor", command=[*mlxgpt, "doctor", "--json"], limit=60, show=table),
        Part(
            name="tests",
            command=tests,
            limit=600,
            show=lambda facts: (f"* {line}" for line in [facts["summary"], *facts["failures"]]),
            read=read_tests,
            environment={"MLXGPT_TEST_DEVICE": device()},
        ),
        Part(name="tuner", command=[*bench, "--tune", *(["--batch", "4"] * quick)], limit=400, show=show_tuner),
        Part(name="bench", command=[*bench, *short, "--out", str(out / "bench")], limit=400, show=show_bench),
        Part(name="resume", command=[*here, "--part", "resume"], limit=120, show=table),
        Part(name="memory", command=[*here, "--part", "memory"], limit=200, show=table),
        Part(name="drift", command=[*here, "--part", "drift"], limit=200, show=table),
    ]


def device() -> str:
    """Returns "gpu" or "cpu", MLX's default device on this machine."""
    code = "from mlx_gpt.device.mlx import on_gpu; print('gpu' if on_gpu() else 'cpu')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip()


def run(part: Part) -> dict:
    """Runs a part. Returns its status, seconds and facts, or why there are none."""
    start, text, errors = time.perf_counter(), "", ""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | part.environment
    process = subprocess.Popen(
        [sys.executable, *part.command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that the children of the process can be killed with it
    )
    try:
        text, errors = process.communicate(timeout=part.limit)
        result = {"status": "done", "facts": part.read(text)}
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, errors = process.communicate()
        result = {"status": "failed", "error": f"not finished after {part.limit} s"}
    except (ValueError, KeyError, IndexError):
        last = (errors or text).strip().splitlines()[-1:] or ["no output"]
        result = {"status": "failed", "error": f"exit code {process.returncode}: {last[0]}"}
    return result | {"seconds": round(time.perf_counter() - start, 1), "exit_code": process.returncode}


# -- the parts that this script computes ------------------------------------------------------------------------------


def resume(preset: str, quick: bool) -> Facts:
    """Trains a run, and another one that is killed and resumed. Compares their last weights and optimizer states."""
    import numpy as np

    from mlx_gpt.checkpoint import store

    steps = 12 if quick else 40
    command = [sys.executable, "-m", "mlx_gpt", "train", "--sample-every=0"]
    options = [f"--preset={preset}", "--batch=4", f"--iters={steps}", f"--eval-every={steps // 4}"]
    options += ["--set=train.eval_windows=16", "--set=train.save_minutes=0.0001", "--recipe=default"]
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        quiet = {"stdout": subprocess.DEVNULL, "check": True}
        subprocess.run([*command, *options, f"--out={whole}"], **quiet)
        process = subprocess.Popen([*command, *options, f"--out={killed}"], stdout=subprocess.DEVNULL)
        metrics = killed / "metrics.jsonl"
        while process.poll() is None and lines_with(metrics, '"save"') < 2:
            time.sleep(0.02)
        process.kill()
        process.wait()
        saved = store.load(killed / "checkpoint.safetensors").header.step
        subprocess.run([*command, f"--resume={killed}"], **quiet)
        one, other = (store.load(path / "checkpoint.safetensors") for path in (whole, killed))
    differences = {
        name: float(np.abs(tensor.astype(np.float64) - theirs[name]).max())
        for ours, theirs in ((one.weights, other.weights), (one.optimizer, other.optimizer))
        for name, tensor in ours.items()
        if not np.array_equal(tensor, theirs[name])
    }
    return {
        "steps": steps,
        "resumed after step": saved,
        "equal bit for bit": not differences,
        "tensors that differ": len(differences),
        "largest difference": max(differences.values(), default=0.0),
    }


def lines_with(path: Path, word: str) -> int:
    """Returns the number of lines of a file that contain a word; 0 if there is no file."""
    return sum(word in line for line in path.read_text().splitlines()) if path.exists() else 0


def memory(preset: str, quick: bool) -> Facts:
    """Measures the growth of memory over 500 steps of model-xs."""
    from memory import growth, sizes

    rows, saves = sizes(60 if quick else 500)
    step, active, resident = rows.T
    return {
        "steps": len(step),
        "saves": saves,
        "MLX active MB": round(active[-1], 1),
        "MLX active growth over the second half": f"{growth(step, active):+.2%}",
        "resident MB": round(resident[-1], 1),
        "resident growth over the second half": f"{growth(step, resident):+.2%}",
    }


def drift(preset: str, quick: bool) -> Facts:
    """Trains for two minutes. Reports the speed of each tenth of this time, which falls if the machine becomes hot."""
    from memory import note

    from mlx_gpt.run.build import make_trainer
    from mlx_gpt.run.request import Request
    from mlx_gpt.run.start import begin
    from mlx_gpt.train.reports import StepReport

    seconds, batch = (15, 4) if quick else (120, 64)
    request = Request(preset=preset, settings={"train.batch_size": batch, "train.eval_every": 1 << 20})
    found = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(begin(request, note), Path(folder), note)
        for report in trainer.run():
            if isinstance(report, StepReport):
                found.append((report.elapsed, report.seconds))
                if report.elapsed > seconds:
                    trainer.stop()
    config = trainer.config
    tokens = config.train.sequences_per_step * config.model.block_size
    speeds = [[tokens / s for end, s in found[1:] if i <= 10 * end / seconds < i + 1] for i in range(10)]
    medians = [round(sorted(s)[len(s) // 2]) for s in speeds if s]
    return {
        "steps": len(found),
        "seconds": seconds,
        "tokens/s by tenth of the time": medians,
        "last to first": round(medians[-1] / medians[0], 3),
    }


# -- the page ---------------------------------------------------------------------------------------------------------


def read_tests(output: str) -> Facts:
    """Reads pytest's last line, and the lines of failures and errors."""
    lines = output.strip().splitlines()
    return {"summary": lines[-1].strip("= "), "failures": [s for s in lines if s.startswith(("FAILED", "ERROR"))]}


def table(facts: Facts) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in facts.items() if value not in ("", []))


def show_tuner(facts: Facts) -> Iterator[str]:
    chosen = ", ".join(f"`{key}={value}`" for key, value in facts["settings"].items()) or "the defaults"
    yield f"Fastest: {chosen}, {facts['ms_per_iter']:,} ms per step, {facts['gain']} times the speed of the defaults."
    yield from ("", "| candidate | speed relative to the defaults |", "|---|---|")
    yield from (f"| {name} | {speed} |" for name, speed in facts["tried"].items())


def show_bench(facts: Facts) -> Iterator[str]:
    for preset, result in facts["presets"].items():
        yield f"{preset}, {result['parameters']:,} parameters; matrix product {result['matmul_gflops']:,} GFLOP/s."
        yield from ("", "| training | ms/step | tokens/s | peak resident GB |", "|---|---|---|---|")
        for name, row in result["training"].items():
            gigabytes = row["peak_resident_bytes"] / 1e9
            yield f"| {name} | {row['ms_per_iter']:,} | {row['tokens_per_second']:,.0f} | {gigabytes:.2f} |"
        yield from ("", "| generation, tokens/s | |", "|---|---|")
        for name, rates in result["writing"].items():
            yield f"| {name} | {', '.join(f'{what}: {rate:,.0f}' for what, rate in rates.items())} |"


def page(found: dict[str, dict], listed: list[Part]) -> str:
    """Returns the report as Markdown."""
    facts = found["doctor"].get("facts", {})
    lines = [f"# mlxgpt on {facts.get('chip', 'this machine')} ({facts.get('backend', 'unknown device')})", ""]
    lines += ["| part | result | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {r.get('error', r['status'])} | {r['seconds']} |" for name, r in found.items()]
    for part in listed:
        if "facts" in found[part.name]:
            lines += ["", f"## {part.name}", "", *part.show(found[part.name]["facts"])]
    return "\n".join(lines) + "\n"


def report(listed: list[Part], out: Path) -> Path:
    """Runs all parts, and writes report.json and report.md after each of them. Returns the path of the page."""
    out.mkdir(parents=True, exist_ok=True)
    found = {part.name: {"status": "not run", "seconds": 0} for part in listed}
    for part in listed:
        print(f"{part.name} (at most {part.limit} s)", flush=True)
        found[part.name] = result = without_paths(run(part))
        print(f"  {result.get('error', result['status'])}, {result['seconds']} s", flush=True)
        (out / "report.json").write_text(json.dumps(found, indent=1))
        (out / "report.md").write_text(page(found, listed))
    return out / "report.md"


def without_paths(value):
    """Returns a value of a report without the entries named in PRIVATE."""
    if isinstance(value, dict):
        return {name: without_paths(entry) for name, entry in value.items() if name not in PRIVATE}
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="some of the tests, and short measurements of model-xs")
    parser.add_argument("--preset", help="the preset that is measured; default model-l, or model-xs with --quick")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/device-report", help="folder of the report")
    parser.add_argument("--part", choices=("resume", "memory", "drift"), help="print the facts of one part as JSON")
    options = parser.parse_args()
    preset = options.preset or ("model-xs" if options.quick else "model-l")
    if options.part:
        print(json.dumps({"resume": resume, "memory": memory, "drift": drift}[options.part](preset, options.quick)))
    else:
        print(f"report: {report(parts(preset, options.quick, options.out), options.out)}")


if __name__ == "__main__":
    main()
