"""torch_compat returns the same values on both versions of torch, and no other module calls deprecated API."""

import re
import warnings
from pathlib import Path

import pytest
import torch

from icefall_pathways.torch_compat import cpu_autocast_dtype, cuda_grad_scaler, num_storage_bytes

ROOT = Path(__file__).resolve().parents[1]
DEPRECATED = re.compile(r"cuda\.amp\b|\bis_autocast_cpu_enabled\b|\.storage\(\)")


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_disabled_scaler_changes_no_value_and_has_no_state():
    scaler = cuda_grad_scaler(enabled=False)
    assert isinstance(scaler, getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler))
    loss = torch.ones(())
    assert scaler.scale(loss) is loss and scaler.get_scale() == 1.0
    assert not scaler.is_enabled() and scaler.state_dict() == {}


def test_autocast_is_recognized_on_the_cpu():
    assert cpu_autocast_dtype() is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cpu_autocast_dtype() == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert cpu_autocast_dtype() is None
    assert cpu_autocast_dtype() is None


def test_shared_storage_counts_once():
    x, y = torch.zeros(10, 5), torch.zeros(3, dtype=torch.int64)
    assert num_storage_bytes([]) == 0
    assert num_storage_bytes([x[:2]]) == 200
    assert num_storage_bytes([x, x[1:], x.t(), y]) == 200 + 24


def _users(pattern, *folders):
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    }


def test_deprecated_names_are_used_in_one_module():
    users = _users(DEPRECATED, "icefall_pathways", "benchmarks", "egs", "tests")
    assert users == {"icefall_pathways/torch_compat.py", "tests/test_torch_compat.py"}


def test_torchscript_is_not_used_but_rejected_by_masks():
    users = _users(re.compile(r"(?<!triton\.)\bjit\b"), "icefall_pathways", "benchmarks", "egs")
    assert users == {"icefall_pathways/pathways/prunable.py"}
