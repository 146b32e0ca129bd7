"""The job graph: order, done marks, failures, parallelism and signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from icefall_pathways.recipe.jobs import Job, JobsInterrupted, Step, print_graph, run_jobs

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *map(str, arguments))


def append(folder: Path, text: str) -> tuple[str, ...]:
    """Return a command that appends a line to FOLDER/order."""
    return python("import sys; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n')", folder / "order", text)


def job(folder: Path, name: str, *after: str, **attributes: object) -> Job:
    return replace(Job(name, (Step(append(folder, name), folder / f".done-{name}"),), after), **attributes)


def failing(name: str, *after: str, **attributes: object) -> Job:
    return replace(Job(name, (Step(python("print('reason'); raise SystemExit(3)")),), after), **attributes)


def order(folder: Path) -> list[str]:
    return (folder / "order").read_text().split() if (folder / "order").exists() else []


def run(jobs, at_once=1):
    run_jobs(jobs, at_once, os.environ)


def test_jobs_run_in_order_and_finished_jobs_are_skipped(tmp_path, capsys):
    jobs = [job(tmp_path, "data"), job(tmp_path, "dense", "data"), job(tmp_path, "report", "data", "dense")]
    run(jobs)
    assert order(tmp_path) == ["data", "dense", "report"]
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d+ s", "N s", line[10:]) for line in lines[:2]] == ["data ...", "data: done (N s)"]
    run(jobs)
    assert order(tmp_path) == ["data", "dense", "report"]
    expected = f"data: already finished (remove {jobs[0].steps[0].mark} to repeat it)"
    assert capsys.readouterr().out.splitlines()[0][10:] == expected


def test_message_names_all_marks_of_a_finished_job(tmp_path, capsys):
    marks = [tmp_path / ".done-3-en", tmp_path / ".done-3-it"]
    for mark in marks:
        mark.touch()
    run([Job("job", (Step((), marks[0], more_marks=(marks[1],)),))])
    assert f"job: already finished (remove {marks[0]} {marks[1]} to repeat it)" in capsys.readouterr().out


def test_failed_job_stops_only_its_dependents(tmp_path, capsys):
    jobs = [
        failing("search", log=tmp_path / "log" / "search.log"),
        job(tmp_path, "pathways", "search"),
        job(tmp_path, "decode", "pathways"),
        job(tmp_path, "dense"),
    ]
    with pytest.raises(ValueError, match=r"failed: search \(see .*search\.log\); not started .*: pathways, decode\."):
        run(jobs)
    assert order(tmp_path) == ["dense"]
    printed = capsys.readouterr()
    assert "search: failed with exit status 3" in printed.out and "reason" in printed.err
    assert (tmp_path / "log" / "search.log").read_text() == "reason\n"


def test_rerun_resumes_at_the_failed_step(tmp_path):
    train = Step(append(tmp_path, "train"), tmp_path / "exp" / ".done")
    broken = Job("lap", (train, Step(python("raise SystemExit(1)"), tmp_path / "exp" / ".done-test")))
    with pytest.raises(ValueError, match="failed: lap"):
        run([broken])
    fixed = Job("lap", (train, Step(append(tmp_path, "decode"), tmp_path / "exp" / ".done-test")))
    run([fixed])
    assert order(tmp_path) == ["train", "decode"]


def test_done_mark_with_other_options_is_ignored(tmp_path):
    step = Step(append(tmp_path, "a"), tmp_path / ".done", "--num-updates 5")
    step.set_done()
    assert step.is_done()
    assert not replace(step, mark_text="--num-updates 6").is_done()
    assert replace(step, mark_text=None).is_done()
    assert (tmp_path / ".done").read_text() == "--num-updates 5\n"


SLOW = "import sys, time, pathlib; pathlib.Path(sys.argv[1]).touch(); time.sleep(float(sys.argv[2]))"
MEASURE = """
import fcntl, os, sys, time
def add(change):
    with open(sys.argv[1], "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{change} {os.environ.get('TQDM_POSITION')} {os.environ.get('OMP_NUM_THREADS')}\\n")
add(1); time.sleep(0.3); add(-1)
"""


@pytest.mark.parametrize(("at_once", "positions", "threads"), [(1, {"None"}, "7"), (2, {"0", "1"}, "1")])
def test_parallel_jobs_are_limited_and_have_one_thread_each(tmp_path, at_once, positions, threads):
    measure = [
        Job(f"train-{index}", (Step(python(MEASURE, tmp_path / "events")),), parallel=True) for index in range(4)
    ]
    environ = {name: value for name, value in os.environ.items() if name != "TQDM_POSITION"}
    run_jobs(measure, at_once, environ | {"OMP_NUM_THREADS": "7"})
    events = [line.split() for line in (tmp_path / "events").read_text().splitlines()]
    running = [sum(int(change) for change, *_ in events[: index + 1]) for index in range(len(events))]
    assert max(running) == at_once
    assert {position for _, position, _ in events} == positions
    assert {value for *_, value in events} == {threads}


def test_serial_job_runs_alone(tmp_path):
    jobs = [Job(name, (Step(python(MEASURE, tmp_path / "events")),), parallel=name != "b") for name in "abc"]
    run(jobs, at_once=3)
    changes = [int(line.split()[0]) for line in (tmp_path / "events").read_text().splitlines()]
    assert changes == [1, -1] * 3


def test_running_job_delays_only_its_dependents(tmp_path):
    slow = Job("slow", (Step(python(SLOW, tmp_path / "started", 0.5)), Step(append(tmp_path, "slow"))), parallel=True)
    run([slow, job(tmp_path, "after", "slow", parallel=True), job(tmp_path, "other", parallel=True)], at_once=2)
    assert order(tmp_path) == ["other", "slow", "after"]


def test_invalid_graph_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="lap depends on masks: expected jobs listed before it"):
        run([job(tmp_path, "lap", "masks")])
    with pytest.raises(ValueError, match="two jobs have the name lap"):
        run([job(tmp_path, "lap"), job(tmp_path, "lap")])
    with pytest.raises(ValueError, match="--at-once 0: expected at least 1"):
        run([job(tmp_path, "lap")], at_once=0)


def test_missing_program_is_reported(tmp_path, capsys):
    with pytest.raises(ValueError, match="failed: musan"):
        run([Job("musan", (Step(("/no/such/lhotse",)),))])
    assert "/no/such/lhotse" in capsys.readouterr().out


def test_dry_run_prints_commands_marks_and_dependencies(tmp_path, capsys):
    first = Job("dense", (Step((sys.executable, "train.py", "--languages", "en fr"), tmp_path / ".done"),))
    second = Job("lap", (Step(("echo",)),), ("dense",), heading="=== Stage 3", log=tmp_path / "lap.log")
    first.steps[0].set_done()
    print_graph([first, second])
    assert capsys.readouterr().out.splitlines() == [
        f"cd {Path.cwd()}",
        "dense: finished",
        f"    {sys.executable} train.py --languages 'en fr'",
        f"      done mark: {tmp_path}/.done (exists)",
        "=== Stage 3",
        "lap: to run, after dense",
        "    echo",
        "      done mark: none, runs every time",
        f"      log: {tmp_path}/lap.log",
    ]


def test_commands_of_a_dry_run_can_be_pasted_into_a_shell(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    monkeypatch.chdir(folder)
    words = ["--systems", "'LAP (random)=exp/lap' dense=exp/dense", '"quoted"', "$HOME", "*", "a\\b", ""]
    stub = "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))"
    print_graph([Job("report", (Step(python(stub, *words)),))])
    cd, _, command, _ = capsys.readouterr().out.splitlines()
    done = subprocess.run(["bash", "-c", f"{cd}\n{command}"], cwd="/", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [str(folder), *words]


INTERRUPTED = """
import os, sys
from pathlib import Path
from icefall_pathways.options import run_script
from icefall_pathways.recipe.jobs import Job, Step, run_jobs
folder = Path(sys.argv[1])
saving = '''
import pathlib, signal, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
stopped = []
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, lambda signum, _: stopped.append(signum))
(folder / f"started-{name}").touch()
while not stopped:
    time.sleep(0.02)
    if (folder / f"finish-{name}").exists(): sys.exit()
time.sleep(0.2)
(folder / f"saved-{name}").write_text(str(int(stopped[0])))
sys.exit(128 + stopped[0])
'''
def job(name, *after):
    return Job(name, (Step((sys.executable, "-c", saving, str(folder), name), folder / f".done-{name}"),), after, True)
run_script(lambda: run_jobs([job("a"), job("b"), job("c", "a")], 2, os.environ))
"""


def handle_signals_by_default():
    """Undo nohup and the shell's `&`, under which the tests and their children ignore SIGHUP and SIGINT."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def start_jobs(folder):
    """Start a process that runs the jobs of INTERRUPTED, and return it when the first two have started."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, folder],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=handle_signals_by_default,
    )
    wait_until(lambda: all((folder / f"started-{name}").exists() for name in "ab") or process.poll() is not None)
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_forwarded_to_running_jobs_so_that_they_can_save(tmp_path, signum):
    process = start_jobs(tmp_path)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    received = str(int(signal.SIGTERM if signum == signal.SIGHUP else signum))
    assert {path.name: path.read_text() for path in tmp_path.glob("saved-*")} == dict.fromkeys(
        ("saved-a", "saved-b"), received
    )
    assert not (tmp_path / "started-c").exists() and not list(tmp_path.glob(".done-*"))
    assert "run the same command again" in err and "Traceback" not in err
    assert "a: stopped" in out


def test_exit_status_of_an_interrupted_run_is_128_plus_signal():
    assert JobsInterrupted(signal.SIGTERM).exit_code == 143


@pytest.mark.parametrize("signum", [signal.SIGINT, None])
def test_run_whose_output_is_closed_stops_its_jobs(tmp_path, signum):
    process = start_jobs(tmp_path)
    process.stdout.close()  # as if Ctrl-C had ended the `tee` of a pipeline
    if signum:
        process.send_signal(signum)
    else:
        (tmp_path / "finish-a").touch()
    try:
        assert process.wait(timeout=60) == (130 if signum else 141)
    finally:
        process.kill()
    err = process.stderr.read()
    saved = {path.name for path in tmp_path.glob("saved-*")}
    assert saved == ({"saved-a", "saved-b"} if signum else {"saved-b"}) and "Traceback" not in err


WITH_WORKER = """
import multiprocessing, pathlib, sys, time
def work(folder):
    (pathlib.Path(folder) / "pid").write_text(str(multiprocessing.current_process().pid))
    time.sleep(60)
if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1],))
    process.start()
    process.join()
"""
RUN_ONE = """
import os, sys
from icefall_pathways.options import run_script
from icefall_pathways.recipe.jobs import Job, Step, run_jobs
run_script(lambda: run_jobs([Job("features", (Step(tuple(sys.argv[1:])),))], 1, os.environ))
"""


def test_stopped_job_leaves_no_processes(tmp_path):
    command = [sys.executable, "-c", RUN_ONE, *python(WITH_WORKER, tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    pid = tmp_path / "pid"
    wait_until(lambda: pid.exists() and pid.read_text())
    worker = int(pid.read_text())
    process.terminate()
    assert process.wait(timeout=60) == 143
    wait_until(lambda: not is_running(worker))


SLEEP = """
import pathlib, sys, time
from icefall_pathways.options import run_script
def work():
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
run_script(work)
"""


def test_interrupt_is_reported_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_ONE, *python(SLEEP, tmp_path / "started")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=handle_signals_by_default,
    )
    wait_until(lambda: (tmp_path / "started").exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.count("interrupted") == 1 and printed.endswith("run the same command again to resume\n")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
