"""A graph of jobs: commands with dependencies and done marks, run in parallel and resumable."""

import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from icefall_pathways.files import atomic_write, read_text
from icefall_pathways.interrupts import JOB_VARIABLE
from icefall_pathways.recipe.environment import SINGLE_THREAD

#: Name of the done mark in the folder of an experiment.
DONE_MARK = ".done"

_POLL = 0.2  # seconds between two checks for finished jobs and signals
_LOG_LINES = 5  # lines of its log that are shown when a job fails


@dataclass(frozen=True)
class Step:
    """One command of a job.

    Attributes:
      command: Program and arguments; empty if there is nothing to run.
      mark: Done mark, a file that is written when the command has succeeded; None: the command runs every time.
      mark_text: Content of the mark; a mark with other content is ignored. None: any content is accepted.
      message: Printed before the command runs.
      more_marks: Further marks with the same content, of a command that does several things.
    """

    command: tuple[str, ...]
    mark: Path | None = None
    mark_text: str | None = None
    message: str = ""
    more_marks: tuple[Path, ...] = ()

    @property
    def marks(self) -> tuple[Path, ...]:
        """All marks."""
        return () if self.mark is None else (self.mark, *self.more_marks)

    def is_done(self) -> bool:
        """Return whether there are marks, and all exist, with the content expected."""
        return bool(self.marks) and all(mark.exists() and self._accepts(mark) for mark in self.marks)

    def set_done(self) -> None:
        """Write the marks."""
        for mark in self.marks:
            with atomic_write(mark) as temporary:
                temporary.write_text(f"{self.mark_text}\n" if self.mark_text else "", encoding="utf-8")

    def _accepts(self, mark: Path) -> bool:
        return self.mark_text is None or read_text(mark).rstrip("\n") == self.mark_text


@dataclass(frozen=True)
class Job:
    """Commands that run one after another.

    Attributes:
      name: Unique name in the graph.
      steps: The commands; finished ones are skipped.
      after: Names of the jobs that must have succeeded before this one starts.
      parallel: The job may run in parallel with others of this kind, then with one thread per process.
      heading: Printed before the first of consecutive jobs with this heading.
      log: File that the output is appended to; None: the terminal.
      log_dir: Folder in which the commands write their own logs; reported if the job fails.
    """

    name: str
    steps: tuple[Step, ...]
    after: tuple[str, ...] = ()
    parallel: bool = False
    heading: str = ""
    log: Path | None = None
    log_dir: Path | None = None

    def is_done(self) -> bool:
        """Return whether all steps are done."""
        return all(step.is_done() for step in self.steps)


class JobsInterrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP stopped the jobs.

    Attributes:
      exit_code: Exit status for this process, as shells define it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


def check_graph(jobs: Sequence[Job]) -> None:
    """Check that names are unique and that every job is listed after those it depends on.

    Raises:
      ValueError: A name is repeated, or a job is listed before one that it depends on.
    """
    names: set[str] = set()
    for job in jobs:
        if job.name in names:
            raise ValueError(f"two jobs have the name {job.name}")
        if missing := set(job.after) - names:
            raise ValueError(f"{job.name} depends on {', '.join(sorted(missing))}: expected jobs listed before it")
        names.add(job.name)


def print_graph(jobs: Sequence[Job]) -> None:
    """Print every job with its dependencies, commands, done marks and log, and whether it is finished.

    The first line and the commands can be pasted into a shell.
    """
    check_graph(jobs)
    print(shlex.join(("cd", str(Path.cwd()))))
    heading = ""
    for job in jobs:
        if job.heading != heading:
            heading = job.heading
            print(heading)
        after = f", after {' '.join(job.after)}" if job.after else ""
        print(f"{job.name}: {'finished' if job.is_done() else 'to run'}{after}")
        for step in job.steps:
            print(f"    {shlex.join(step.command) or step.message}")
            mark = ", ".join(map(str, step.marks)) or "none, runs every time"
            print(f"      done mark: {mark}{' (exists)' if step.is_done() else ''}")
        if job.log is not None:
            print(f"      log: {job.log}")


def run_jobs(jobs: Sequence[Job], at_once: int, environ: Mapping[str, str]) -> None:
    """Run jobs in their order, as soon as those they depend on have succeeded.

    When a job fails, those that depend on it are not started; all others run. After SIGINT, SIGTERM or SIGHUP no other
    job is started and the running ones receive the signal (SIGTERM for SIGHUP): trainings save a checkpoint and exit.

    Args:
      jobs: The graph; a job is listed after those it depends on.
      at_once: Maximum number of parallel jobs.
      environ: Environment of the commands.

    Raises:
      ValueError: The graph is not valid, or jobs failed; the message lists them and their logs.
      JobsInterrupted: A signal stopped the jobs.
    """
    check_graph(jobs)
    if at_once < 1:
        raise ValueError(f"--at-once {at_once}: expected at least 1")
    _Runner(jobs, at_once, environ).run()


class _Runner:
    """State of one run of a graph."""

    def __init__(self, jobs: Sequence[Job], at_once: int, environ: Mapping[str, str]) -> None:
        self._at_once = at_once
        self._environ = environ
        self._waiting = list(jobs)
        self._running: dict[int, Job] = {}  # slot -> job
        self._succeeded: set[str] = set()
        self._failed: list[Job] = []
        self._skipped: list[Job] = []
        self._finished: queue.SimpleQueue[tuple[int, str, float]] = queue.SimpleQueue()  # slot, error, seconds
        self._heading = ""
        self._processes = _Processes()

    def run(self) -> None:
        with self._processes.forward_signals():
            try:
                self._run_all()
            except BrokenPipeError:  # Ctrl-C also ends the `tee` of `./run.sh | tee log`
                self._stop()
                if not self._processes.stopped_by:
                    raise
        if self._processes.stopped_by:
            raise JobsInterrupted(self._processes.stopped_by)
        if self._failed:
            logs = ", ".join(f"{job.name} (see {_output_location(job)})" for job in self._failed)
            skipped = f"; not started because of their dependencies: {_names(self._skipped)}" if self._skipped else ""
            raise ValueError(f"failed: {logs}{skipped}. Run the same command again to resume")

    def _run_all(self) -> None:
        while self._running or self._waiting:
            if not self._processes.stopped_by:
                self._start_ready()
            elif not self._running:
                break
            if self._running:
                with suppress(queue.Empty):
                    self._collect(*self._finished.get(timeout=_POLL))

    def _stop(self) -> None:
        """Stop the running jobs, and wait until they have saved their state; nothing can be printed any more."""
        self._processes.send(signal.SIGTERM)
        while self._running:
            with suppress(queue.Empty):
                self._running.pop(self._finished.get(timeout=_POLL)[0])

    def _start_ready(self) -> None:
        for job in list(self._waiting):
            if set(job.after) & {other.name for other in self._failed + self._skipped}:
                self._waiting.remove(job)
                self._skipped.append(job)
            elif set(job.after) <= self._succeeded:
                if job.is_done():
                    self._waiting.remove(job)
                    self._print_heading(job)
                    _print_progress(f"{job.name}: already finished{_repeat_hint(job)}")
                    self._succeeded.add(job.name)
                elif self._has_room(job):
                    self._waiting.remove(job)
                    self._start(job)
                else:
                    return  # keep the order

    def _has_room(self, job: Job) -> bool:
        if job.parallel and all(other.parallel for other in self._running.values()):
            return len(self._running) < self._at_once
        return not self._running

    def _start(self, job: Job) -> None:
        slot = next(index for index in range(self._at_once) if index not in self._running)
        environ = {**self._environ, JOB_VARIABLE: job.name}
        if job.parallel and self._at_once > 1:
            environ |= SINGLE_THREAD | {"TQDM_POSITION": str(slot)}
        self._print_heading(job)
        _print_progress(f"{job.name} ...")
        self._running[slot] = job
        threading.Thread(target=self._run_job, args=(slot, job, environ), daemon=True).start()

    def _run_job(self, slot: int, job: Job, environ: dict[str, str]) -> None:
        start = time.monotonic()
        error = ""
        try:
            for step in job.steps:
                if not step.is_done():
                    error = self._processes.run(step, job.log, environ)
                    if error:
                        break
                    step.set_done()
        except Exception as problem:  # reported: the main thread waits for the result of every job
            error = f"failed: {problem}"
        self._finished.put((slot, error, time.monotonic() - start))

    def _collect(self, slot: int, error: str, seconds: float) -> None:
        job = self._running.pop(slot)
        _print_progress(f"{job.name}: {error or 'done'} ({seconds:.0f} s)")
        if not error:
            self._succeeded.add(job.name)
            return
        self._failed.append(job)
        if job.log is not None and job.log.exists():
            print(*_last_lines(job.log), sep="\n", file=sys.stderr, flush=True)

    def _print_heading(self, job: Job) -> None:
        if job.heading != self._heading:
            self._heading = job.heading
            print(job.heading, flush=True)


def _repeat_hint(job: Job) -> str:
    """Return how to repeat a finished job; "" if it has no done mark."""
    marks = " ".join(str(mark) for step in job.steps for mark in step.marks)
    return f" (remove {marks} to repeat it)" if marks else ""


class _Processes:
    """The running commands, to which signals are forwarded."""

    def __init__(self) -> None:
        self.stopped_by = 0  # the last signal
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()

    @contextmanager
    def forward_signals(self) -> Iterator[None]:
        """Forward SIGINT, SIGTERM and SIGHUP to the running commands inside the context."""
        handled = [
            signum
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(signum) is not signal.SIG_IGN  # such as SIGHUP under nohup
        ]
        previous = {signum: signal.signal(signum, self._forward) for signum in handled}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def run(self, step: Step, log: Path | None, environ: dict[str, str]) -> str:
        """Run a command, and return its error message; empty if it succeeded."""
        with ExitStack() as files:
            output = None
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                output = files.enter_context(log.open("ab"))
            with self._lock:
                if self.stopped_by:
                    return "stopped"
                if step.message:
                    print(step.message, flush=True)
                if not step.command:
                    return ""
                # In a new session, so that the terminal does not send Ctrl-C to the command a second time.
                process = subprocess.Popen(
                    step.command,
                    env=environ,
                    stdout=output,
                    stderr=None if output is None else subprocess.STDOUT,
                    start_new_session=True,
                )
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.remove(process)
        if status == 0:
            return ""
        if self.stopped_by:
            return "stopped"
        return f"failed with exit status {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"

    def _forward(self, signum: int, _frame: FrameType | None) -> None:
        with self._lock:
            self.stopped_by = signum
            # Commands save their state on SIGTERM, not on SIGHUP.
            self.send(signal.SIGTERM if signum == signal.SIGHUP else signum)

    def send(self, signum: int) -> None:
        """Send a signal to the process groups of the running commands, as a terminal does."""
        with self._lock:
            for process in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signum)


def _print_progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def _output_location(job: Job) -> str:
    if job.log is not None:
        return str(job.log)
    return f"its output above, and {job.log_dir}" if job.log_dir is not None else "its output above"


def _names(jobs: Sequence[Job]) -> str:
    return ", ".join(job.name for job in jobs)


def _last_lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
