"""Commands for alerts."""

import json
import shlex
import signal
import sys
import threading
import time

import pytest

from mlx_gpt.watch.command import AlertCommand

ALERT = {"report": "alert", "kind": "disk", "step": 3, "since": 2, "evidence": '1 MB\'s "free"', "advice": "$(free)"}


def run(command, folder, lines=(ALERT,), limit=30.0):
    """Runs the command for the alerts among the lines. Returns the notes."""
    notes = []
    alerts = AlertCommand(command, folder, notes.append, limit)
    for line in lines:
        alerts.add(line)
    alerts.close()
    return notes


def test_a_command_gets_each_alert_once_as_json_and_nothing_else(tmp_path):
    path = tmp_path / "alerts.jsonl"
    lines = [{"report": "step", "step": 1}, ALERT, {"report": "stop", "step": 2}, ALERT | {"step": 4}]
    assert run(f"cat >> {shlex.quote(str(path))}", tmp_path, lines) == []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [{"run": str(tmp_path)} | ALERT, {"run": str(tmp_path)} | ALERT | {"step": 4}]


@pytest.mark.parametrize("command, words", [("exit 3", "exit code 3"), ("no-such-program-here", "exit code 127")])
def test_a_command_that_fails_is_one_line(tmp_path, command, words):
    (note,) = run(command, tmp_path)
    assert note == f"--alert {command}: failed with {words}; the run continues"


def test_a_command_that_does_not_end_is_killed_with_what_it_started(tmp_path):
    path = tmp_path / "late"
    (note,) = run(f"(sleep 0.6; touch {path}) & sleep 60", tmp_path, limit=0.1)
    assert note.endswith("was ended after 0.1 s; the run continues")
    time.sleep(0.8)
    assert not path.exists()


def test_a_command_that_reads_nothing_is_no_failure(tmp_path):
    assert run("true", tmp_path, [ALERT | {"evidence": "x" * 10**6}]) == []


def test_adding_an_alert_does_not_wait_for_the_command(tmp_path):
    gate = tmp_path / "gate"
    notes = []
    alerts = AlertCommand(f"while [ ! -e {gate} ]; do sleep 0.01; done", tmp_path, notes.append)
    alerts.add(ALERT)
    alerts.add(ALERT)
    gate.touch()  # reached although no command has ended
    alerts.close()
    assert notes == []


def test_a_command_has_the_default_signals_and_a_session_of_its_own(tmp_path):
    code = "import os, signal, sys; print(*signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getsid(0) == os.getpid(), "
    code += f"os.getppid() != os.getsid(0), file=open({str(tmp_path / 'found')!r}, 'w'))"
    before, threads = (
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}),
        threading.active_count(),
    )
    try:  # as in the thread that trains
        assert run(f"exec {sys.executable} -c {shlex.quote(code)}", tmp_path) == []
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (tmp_path / "found").read_text().split() == ["True", "True"]
    assert threading.active_count() <= threads
