"""Measures the dashboard with many runs: time to the first paint and of a report, memory of the reader, bytes read.

    python experiments/dashboard_scale.py [--runs 200] [--steps 1000000] [--folder DIR]

Makes a folder with this many runs of 600 steps, one of them with many more, serves it, and opens it in Chromium twice:
when the server has just started, and when it has read everything. Then adds reports to a run, and measures how long
each takes to appear. Needs playwright and Chromium.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

SHORT = 600  # steps of all runs but one
TIMES = """() => {
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return { paint: paint?.startTime, charts: document.querySelectorAll(".js-plotly-plot").length,
           rows: document.querySelectorAll("#list li").length, now: performance.now() };
}"""


def make_run(folder: Path, steps: int, seed: int) -> None:
    """Writes a run whose loss falls with noise."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(
        f"[model]\nn_layer = {draw.randint(2, 8)}\n[train]\niters = {steps}\nseed = {seed}\n"
    )
    with open(folder / "metrics.jsonl", "w") as file:
        for n in range(1, steps + 1):
            loss = 1.2 + 3 / math.sqrt(1 + 60 * n / steps) + draw.gauss(0, 0.08)
            line = {
                "report": "step", "step": n, "loss": loss, "grad_norm": abs(draw.gauss(0.6, 0.1)), "lr": 0.003,
                "tokens": n * 4096, "seconds": 0.4, "elapsed": n * 0.4, "skipped": 0,
                "rule_lrs": {"adamw": 0.003, "muon": 0.02}, "ce": loss, "H": loss - 0.02, "H-CE": -0.02,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
            if n % max(steps // 20, 1) == 0:
                line = {"report": "eval", "step": n, "val_loss": loss + 0.1, "val_ppl": math.exp(loss + 0.1)}
                line |= {"val_bits_per_byte": 2.0, "tokens": n * 4096, "seconds": 2.0, "elapsed": n * 0.4}
                file.write(json.dumps(line) + "\n")


def memory(pid: int) -> int:
    """Peak resident memory of a process in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1])


def bytes_read(pid: int) -> int:
    """Bytes that a process has read with system calls, from files and sockets."""
    return int(re.search(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())[1])


def visit(browser, address: str) -> dict:
    """Opens the page in a new tab without a cache. Returns the times in milliseconds."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(address, wait_until="commit")
    page.locator("#list li").first.wait_for()
    rows = page.evaluate(TIMES)["now"]
    page.locator(".js-plotly-plot").first.wait_for(timeout=60_000)
    found = page.evaluate(TIMES)
    context.close()
    return {"first paint": found["paint"], "list of runs": rows, "first chart": found["now"]}


def delays(browser, address: str, metrics: Path) -> list[float]:
    """Adds updates to a run, and returns the seconds that the step of each takes to appear on the page."""
    page, found = browser.new_page(), []
    page.goto(address)
    page.locator(".js-plotly-plot").first.wait_for(timeout=60_000)
    for n in range(20):
        step = 3_000_000 + n
        line = {
            "report": "step",
            "step": step,
            "loss": 1.3,
            "tokens": step * 4096,
            "seconds": 0.4,
            "elapsed": step * 0.4,
        }
        start = time.perf_counter()
        with open(metrics, "a") as file:
            file.write(json.dumps(line) + "\n")
        page.wait_for_function("text => document.body.innerText.includes(text)", arg=f"{step:,}", polling=20)
        found.append(time.perf_counter() - start)
        time.sleep(random.uniform(0.2, 0.8))
    page.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="keep the runs in this folder, and use those that are there")
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        runs = options.folder or Path(place) / "runs"
        for n in range(0 if runs.exists() else options.runs):
            make_run(runs / f"run-{n:03}", SHORT if n else options.steps, n)
        size = sum(path.stat().st_size for path in runs.glob("*/metrics.jsonl"))
        print(f"{options.runs} runs, one of {options.steps:,} steps: {size / 1e6:.0f} MB")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        command = [sys.executable, "-m", "mlx_gpt", "watch", str(runs), "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            before = memory(server.pid), bytes_read(server.pid)
            print("load average:", *(f"{load:.1f}" for load in os.getloadavg()))
            print("just started, ms:", {name: round(ms) for name, ms in visit(browser, address).items()})
            start = time.monotonic()
            while unread := httpx.get(f"{address}/api/runs", params={"after": 1 << 40}, timeout=60).json()["unread"]:
                pass
            print(f"all read after another {time.monotonic() - start:.1f} s; {unread} bytes unread")
            print(f"memory: {before[0] / 1e6:.0f} MB at the start, {memory(server.pid) / 1e6:.0f} MB at most")
            print(f"bytes read: {(bytes_read(server.pid) - before[1]) / size:.3f} times the size of the files")
            for _ in range(3):
                print("all read, ms:", {name: round(ms) for name, ms in visit(browser, address).items()})
            read = bytes_read(server.pid)
            for _ in range(10):
                httpx.get(f"{address}/api/runs", params={"after": 1 << 40})
            print(f"bytes read by ten requests without news: {bytes_read(server.pid) - read:,}")
            seconds = delays(browser, address, runs / "run-001" / "metrics.jsonl")
            print(f"a report appears after {statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s at most")
        finally:
            server.terminate()
            browser.close()


if __name__ == "__main__":
    main()
