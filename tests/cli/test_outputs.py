"""What receives the reports of a session."""

import threading
import types

import pytest
from reporting import step

from mlx_gpt.cli import outputs
from mlx_gpt.cli.outputs import Channels, Outputs
from mlx_gpt.train.reports import Alert, SampleReport

STALLED = Alert(kind="stalled", step=1, since=1, evidence="no report for 90 s", advice="look at it")


class Session:
    """A session whose check() finds that it is stalled, once."""

    def __init__(self, folder):
        config = types.SimpleNamespace(to_dict=lambda: {})
        self.start = types.SimpleNamespace(header=types.SimpleNamespace(config=config, step=0))
        self.folder, self.alerts, self.idle = folder, [STALLED], []

    def record(self, report):
        return [STALLED]

    def check(self, idle):
        self.idle.append(idle)
        found, self.alerts = self.alerts, []
        return found


class View:
    def __init__(self):
        self.shown, self.notes, self.came = [], [], threading.Event()

    def show(self, report):
        self.shown.append(report)
        self.came.set()

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def view(monkeypatch):
    monkeypatch.setattr(outputs, "CHECK_SECONDS", 0.01)
    return View()


def test_a_run_whose_reports_do_not_come_is_told_while_the_main_thread_waits(tmp_path, view):
    session = Session(tmp_path)
    opened = Outputs(session, view, Channels(alert=f"cat > {tmp_path}/alert"))
    assert view.came.wait(30)
    opened.close()
    assert view.shown == [STALLED] and min(session.idle) >= 0
    assert '"kind": "stalled"' in (tmp_path / "alert").read_text()


def test_a_recorded_report_comes_before_its_alerts_and_nothing_comes_after_the_end(tmp_path, view):
    session = Session(tmp_path)
    session.alerts = []
    opened = Outputs(session, view, Channels())
    opened.show(step(1))
    opened.record(SampleReport(step=1, text="x"))
    opened.close()
    count = len(session.idle)
    assert view.shown == [step(1), SampleReport(step=1, text="x"), STALLED]
    assert len(session.idle) == count and view.notes == []
