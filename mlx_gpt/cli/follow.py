"""Runs a training session to its end: shows its reports, handles signals, and gives the exit code."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

from mlx_gpt import api, device, model, run, watch
from mlx_gpt.cli.options import echo_json, note
from mlx_gpt.cli.outputs import Channels, Outputs
from mlx_gpt.errors import Diverged, OutOfRoom, UserError
from mlx_gpt.train.reports import Alert, SampleDue, SampleReport, SaveReport, StopReport, kind, to_dict

EXIT_OF_SIGNAL = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SAMPLE_TOKENS = 300
# timeout(1) and some shells signal both the process and its group, so one signal can arrive twice. Signals that follow
# the first one this soon are ignored.
SAME_SIGNAL_SECONDS = 0.3


def follow(session, as_json: bool, channels: Channels) -> int:
    """Trains, and shows the reports of the run as they arrive.

    Args:
        session: The session.
        as_json: Whether to print JSON.
        channels: Where the reports go besides.

    Returns:
        The exit code: 0, or that of the signal which ended the run.

    Raises:
        BrokenPipeError: The reader of stdout has closed the pipe. The run is saved.
        Diverged, OutOfRoom: See _exit_code().
    """
    with contextlib.ExitStack() as stack:
        stack.callback(session.close)
        view = PipedView(stack.enter_context(contextlib.closing(_view(session, as_json))), session)
        session.note = view.note
        received = _stop_on_signals(session, view)
        stack.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, EXIT_OF_SIGNAL)
        is_first = session.group.rank == 0  # of the processes of the run; the others show nothing
        outputs = Outputs(session, view, channels if is_first else Channels())
        stack.enter_context(contextlib.closing(outputs))
        saves: list[SaveReport] = []  # the reports of saves since the last report of another kind
        for report in session:
            outputs.show(report)
            if isinstance(report, SampleDue) and is_first and not as_json:
                text = "".join(api.generate(session.run, max_tokens=SAMPLE_TOKENS))
                outputs.record(SampleReport(step=report.step, text=text))
            if isinstance(report, SaveReport):
                saves.append(report)
            elif not isinstance(report, StopReport | Alert):
                saves.clear()
    if view.is_closed:
        raise BrokenPipeError
    try:
        return _exit_code(report, received, session.folder, saves)
    except UserError as error:
        if session.group.rank:  # rank 0 prints it
            return error.exit_code
        raise


def _view(session, as_json: bool):
    if session.group.rank:
        return SilentView()
    return JsonView() if as_json else TextView(session)


def _exit_code(report: StopReport, received: list[int], folder: Path, saves: list[SaveReport]) -> int:
    """The exit code of a run.

    Args:
        report: The last report of the run.
        received: The number of the signal that ended the run; empty without one.
        folder: The run folder.
        saves: The attempts to save the last checkpoint.

    Raises:
        Diverged: Training diverged.
        OutOfRoom: The last checkpoint could not be saved in the run folder.
    """
    if report.reason == "diverged":
        kept = any(folder.glob("*.safetensors"))
        raise Diverged(
            f"training diverged at step {report.step}: in several updates in a row, the loss or gradient was not "
            "finite, or the loss was far above that of a uniform guess; lower --lr and "
            + (f"resume with --resume {folder}, whose checkpoints are intact" if kept else "start a new run")
        )
    if not report.saved:
        reasons, path = "; ".join(save.error for save in saves if save.error), saves[-1].path
        raise OutOfRoom(
            f"the last checkpoint could not be saved anywhere; earlier checkpoints are unchanged: {reasons}"
            if saves[-1].error
            else f"the last checkpoint was saved to {path}, continue with --resume {path}; not in the folder of the "
            f"run: {reasons}"
        )
    if report.reason == "signal":
        return EXIT_OF_SIGNAL[received[0] if received else signal.SIGTERM]  # without one, another rank received it
    return 0


def _stop_on_signals(session, view) -> list[int]:
    """Handles signals: the first ends the run after its current step, the second ends the process at once.

    Python runs signal handlers in the main thread between bytecode instructions, so not while MLX computes a step.
    The interpreter also writes the number of each signal to the file descriptor of set_wakeup_fd(), and does so at
    once. A thread reads the numbers from there. The handlers themselves do nothing.

    The signals are blocked in the calling thread, so that only other threads receive them. Programs that the thread
    starts inherit this. A signal to all processes of a terminal thus does not end the compiler of a kernel, without
    which the step cannot be finished and saved.

    Returns:
        A list that receives the number of the first signal.
    """
    received: list[int] = []
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in EXIT_OF_SIGNAL:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda *_: None)

    def watch():
        first = 0.0
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_OF_SIGNAL)
        while True:
            number = os.read(reading, 1)[0]
            if number not in EXIT_OF_SIGNAL:
                continue
            if not received:
                first = time.monotonic()
                received.append(number)
                session.stop()
                view.note("stopping after this update, then saving; a second signal ends the process at once")
            elif time.monotonic() - first > SAME_SIGNAL_SECONDS:
                os._exit(EXIT_OF_SIGNAL[number])

    threading.Thread(target=watch, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_OF_SIGNAL)
    return received


class PipedView:
    """Passes reports and notes to a view. When the reader of the output has closed the pipe, stops the session instead.

    The notes may come from another thread than the reports.

    Attributes:
        is_closed: Whether the reader has closed the pipe. Nothing is shown then.
    """

    def __init__(self, view, session):
        self._view, self._session, self.is_closed = view, session, False

    def show(self, report) -> None:
        self._pass(self._view.show, report)

    def note(self, text: str) -> None:
        self._pass(self._view.note, text)

    def _pass(self, method, argument) -> None:
        if not self.is_closed:
            try:
                method(argument)
            except BrokenPipeError:
                self.is_closed = True
                self._session.stop()


class SilentView:
    """Shows nothing: the view of all processes of a run but the first."""

    def show(self, report) -> None:
        """Does nothing."""

    def note(self, text: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class JsonView:
    """Prints one JSON object per report on stdout, and notes on stderr."""

    def show(self, report) -> None:
        echo_json({"report": kind(report), **to_dict(report)})

    def note(self, text: str) -> None:
        note(text)

    def close(self) -> None:
        """Does nothing."""


class TextView:
    """Shows reports as text, with samples of generated text."""

    def __init__(self, session):
        config = session.start.header.config
        self._session = session
        self._console = watch.RunConsole(
            watch.Terminal(highlight=False),
            iters=config.train.length,
            tokens_per_step=config.train.sequences_per_step * config.model.block_size,
            log_every=config.train.log_every,
            patience=config.train.patience,
            peak_memory=device.peak_memory,
        )
        for line in _headlines(session):
            self._console.note(line, "")

    def show(self, report) -> None:
        self._console.show(report)
        if isinstance(report, StopReport):
            folder = self._session.folder
            if report.reason == "signal" and report.saved:
                objective = self._session.start.header.config.train.objective
                command = "train" if objective == "cross-entropy" else "rl"
                self._console.note(f"continue with: mlxgpt {command} --resume {folder}", "")
            if (best := run.best_checkpoint(folder)).exists():
                self._console.note(f"generate text with: mlxgpt generate {best}", "")

    def note(self, text: str) -> None:
        self._console.note(text)

    def close(self) -> None:
        self._console.close()


def _headlines(session) -> list[str]:
    """Lines that describe the model, the corpus, the device and the run folder."""
    start, trainer, machine = session.start, session.trainer, device.device_report()
    header = start.header
    train, shape = header.config.train, header.config.model
    num_params = model.cost.num_params(shape, header.vocab_size)
    lines = [
        f"{num_params:,} parameters: {shape.n_layer} layers, {shape.n_head} heads, "
        f"{shape.n_embd} wide, {shape.block_size} tokens of context, {header.vocab_size} ids",
        f"{start.corpus.name}: {trainer.source.num_tokens:,} training and {trainer.validation.num_tokens:,} validation "
        "tokens",
        f"{machine['name']} ({machine['backend']}), MLX {machine['mlx']}, {train.dtype}; "
        f"batch {train.batch_size} x {train.grad_accum_steps}; into {session.folder}",
    ]
    if machine["backend"] == "cpu" and device.can_compile():
        lines.append("the first update takes some seconds to compile, longer if its kernels are new to this machine")
    if header.step:
        lines.append(f"resuming at step {header.step}" + (f" of {train.length}" if train.length else ""))
    return lines
