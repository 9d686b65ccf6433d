"""`mlxgpt watch` and `mlxgpt train --watch`, as processes and as commands."""

import os
import re
import signal
import socket
import sys
import time

import httpx
import pytest
from commands import mlxgpt, process
from constants import SMALL

pytest.importorskip("plotly", reason="needs the extra watch")


def answers(address):
    try:
        return httpx.get(f"{address}/api/runs", timeout=20).status_code == 200
    except httpx.TransportError:
        return False


def until_gone(address, seconds=20):
    """Waits until nothing listens at an address."""
    host, port = re.fullmatch(r"http://(.*):(\d+)", address).groups()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as sock:
            if sock.connect_ex((host, int(port))):
                return
        time.sleep(0.05)
    raise AssertionError("the dashboard goes on")


def test_the_address_is_printed_and_ctrl_c_ends_the_dashboard(tmp_path):
    (tmp_path / "runs").mkdir()
    with process("watch", "--port", "0", cwd=tmp_path) as running:
        line = running.stdout.readline()
        address = re.search(r"runs at (http://127\.0\.0\.1:\d+) ", line)[1]
        assert answers(address) and httpx.get(address).headers["content-security-policy"].startswith(
            "default-src 'none'"
        )
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130


def test_without_the_extra_one_line_names_it(tmp_path, monkeypatch):
    """Before training begins, so that no run is left behind."""
    (tmp_path / "runs").mkdir()
    monkeypatch.setitem(sys.modules, "plotly", None)
    for arguments in (["watch"], ["train", "--corpus", "pydocs", *SMALL, "--watch"]):
        done = mlxgpt(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert "needs the package plotly; install it with: pip install -e '.[watch]'" in done.stderr
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["watch"], "runs: no such folder"),
        (["watch", "file"], "file: not a folder"),
        (["watch", ".", "--host", "0.0.0.0"], "set an API key"),
        (["watch", ".", "--host", ""], "--host is empty"),
        (["train", "--plan", "--watch"], "give one of them"),
        (["rl", "model.safetensors", "--plan", "--watch"], "give one of them"),
    ],
)
def test_what_cannot_be_watched_is_refused_in_one_line(tmp_path, arguments, words):
    (tmp_path / "file").write_text("")
    done = mlxgpt(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


LONG = [argument.replace("--iters=12", "--iters=100000") for argument in SMALL] + ["--json", "--watch"]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_dashboard_beside_a_run_ends_with_it(tmp_path, ending):
    with process("train", "--corpus", "pydocs", *LONG, "--out", "run", cwd=tmp_path) as running:
        line = next(line for line in running.stderr if "dashboard: " in line)
        address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        assert answers(address) and "mlxgpt watch run" in line
        running.send_signal(ending)
        running.communicate(timeout=60)
    until_gone(address)


@pytest.mark.slow
def test_the_end_of_the_dashboard_is_nothing_to_the_run(tmp_path):
    with process("train", "--corpus", "pydocs", *LONG, "--out", "run", cwd=tmp_path) as running:
        next(line for line in running.stderr if "dashboard: " in line)
        [child] = children_of(running.pid)
        os.kill(child, signal.SIGKILL)
        for _ in range(20):
            next(line for line in running.stdout if '"report": "step"' in line)
        running.send_signal(signal.SIGINT)
        assert '"reason": "signal"' in running.communicate(timeout=120)[0]
    assert running.returncode == 130


def children_of(pid):
    """The processes that a process has started and that serve a dashboard."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/status") as status, open(f"/proc/{name}/cmdline") as command:
                if f"PPid:\t{pid}\n" in status.read() and "watch" in command.read().split("\0"):
                    found.append(int(name))
        except OSError:
            continue
    return found
