import pytest
import torch


@pytest.fixture(scope="module")
def soak(load_benchmark):
    return load_benchmark("soak")


def test_compare_lists_differing_tensors(soak, experiment, tmp_path):
    checkpoint = {part: {} for part in soak.PARTS} | torch.load(experiment / "exp" / "checkpoint-5.pt")
    folders = [tmp_path / name for name in ("uninterrupted", "killed")]
    for folder in folders:
        folder.mkdir()
        torch.save(checkpoint, folder / "checkpoint-5.pt")
    assert soak.compare(*folders) == (5, [])
    name = next(iter(checkpoint["model"]))
    checkpoint["model"] = checkpoint["model"] | {name: checkpoint["model"][name] + 1e-3}
    torch.save(checkpoint, folders[1] / "checkpoint-5.pt")
    assert soak.compare(*folders) == (5, [f"model/{name}/"])


def test_fork_reports_exit_status_and_timeout(soak, monkeypatch, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, time\ntime.sleep(float(sys.argv[-2]))\nsys.exit(int(sys.argv[-1]))\n")
    monkeypatch.setattr(soak, "TRAIN", script)
    assert soak.start_fork(tmp_path / "short", ["0", "3"]).wait(60) == 3
    process = soak.start_fork(tmp_path / "long", ["600", "0"])
    with pytest.raises(soak.subprocess.TimeoutExpired):
        process.wait(0.2)
    process.kill()
    assert process.wait(60) == -soak.signal.SIGKILL
