"""Weights from files of others, honest and malicious ones."""

import datetime
import pickle
import pickletools
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from icefall_pathways.experiment.icefall_checkpoints import ForeignCheckpointError, is_foreign, read_weights

WEIGHTS = {
    "a.weight": torch.randn(3, 4).t(),
    "a.bias": torch.randn(5)[1:4],
    "half": torch.randn(2).half(),
    "bf16": torch.randn(2).bfloat16(),
    "double": torch.randn(2, dtype=torch.float64),
    "counts": torch.tensor([1, -2]),
    "flag": torch.tensor([True, False]),
    "scalar": torch.tensor(0.5),
    "nothing": torch.empty(0, 3),
}


def assert_same(found, expected=WEIGHTS):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.fixture
def foreign_class(monkeypatch):
    """A class of a package that is not there when the file is read."""
    module = types.ModuleType("icefall.utils")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": "icefall.utils"})
    monkeypatch.setitem(sys.modules, "icefall", types.ModuleType("icefall"))
    monkeypatch.setitem(sys.modules, "icefall.utils", module)
    return module.AttributeDict


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_else_an_icefall_checkpoint_holds_does_no_harm(tmp_path, foreign_class, protocol):
    state = nn.Linear(2, 2).state_dict()  # an OrderedDict with an attribute of its own
    others = {
        "optimizer": {
            "state": {0: {"delta": torch.ones(2), "step": 3}},
            "param_groups": [{"lr": 0.045, "betas": (0.9, 0.98)}],
        },
        "grad_scaler": {"scale": 65536.0, "_growth_tracker": 7},
        "sampler": {"random": np.random.RandomState(1).get_state(), "x": np.float64(0.5), "n": defaultdict(int, a=1)},
        "exp_dir": Path("exp"),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "params": foreign_class(a=1, b={2, 3}),
        "when": datetime.timedelta(seconds=3),
        "bytes": b"\x00\xff",
        "none": None,
    }
    torch.save({"model": state, "model_avg": WEIGHTS, **others}, tmp_path / "epoch-1.pt", pickle_protocol=protocol)
    for module in ("icefall", "icefall.utils"):
        del sys.modules[module]
    assert is_foreign(tmp_path / "epoch-1.pt")
    assert_same(read_weights(tmp_path / "epoch-1.pt"), dict(state))
    assert_same(read_weights(tmp_path / "epoch-1.pt", "model_avg"))
    assert "icefall" not in sys.modules


def test_a_bare_state_dict_and_safetensors(tmp_path):
    torch.save(OrderedDict(WEIGHTS), tmp_path / "bare.pt")
    torch.save({"weight": nn.Parameter(torch.ones(2))}, tmp_path / "parameter.pt")
    save_file({name: value.contiguous() for name, value in WEIGHTS.items()}, tmp_path / "weights.safetensors")
    assert_same(read_weights(tmp_path / "bare.pt"))
    assert torch.equal(read_weights(tmp_path / "parameter.pt")["weight"], torch.ones(2))
    found = read_weights(tmp_path / "weights.safetensors")
    assert_same({name: found[name] for name in WEIGHTS})
    assert is_foreign(tmp_path / "bare.pt") and is_foreign(tmp_path / "weights.safetensors")


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["model", "optimizer"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("call", ["open", "eval", "getattr", "system", "import"])
def test_a_call_is_refused_and_not_made(tmp_path, place, protocol, call):
    victim = tmp_path / "was-run"
    calls = {
        "open": Calls(open, str(victim), "w"),
        "eval": Calls(eval, f"open({str(victim)!r}, 'w')"),
        "getattr": Calls(getattr, victim, "touch"),
        "system": Calls(__import__("os").system, f"touch {victim}"),
        "import": Calls(__import__, "os"),
    }
    content = {"model": dict(WEIGHTS), "optimizer": {}}
    content[place]["evil"] = calls[call]
    torch.save(content, tmp_path / "evil.pt", pickle_protocol=protocol)
    for read in (read_weights, is_foreign):
        with pytest.raises(ForeignCheckpointError, match=r"wants to call .* nothing of it was run"):
            read(tmp_path / "evil.pt")
    assert not victim.exists()


def test_a_call_into_a_package_that_checkpoints_do_hold_is_not_made(tmp_path):
    victim = tmp_path / "was-run"
    calls = [Calls(np.save, str(victim), 1), Calls(torch.save, {}, str(victim))]
    torch.save({"model": WEIGHTS, "optimizer": calls}, tmp_path / "file.pt")
    assert_same(read_weights(tmp_path / "file.pt"))
    assert not victim.exists() and not victim.with_suffix(".npy").exists()


def test_a_pickle_cannot_change_what_reads_it(tmp_path):
    """A pickle may set attributes of what it is given: of classes and functions, too."""
    program = b"\x80\x02"
    for name in (b"torch._utils\n_rebuild_tensor_v2\n", b"numpy\nndarray\n"):
        program += b"c" + name + b"N}X\x0c\x00\x00\x00__defaults__NsX\x06\x00\x00\x00appendK\x01s\x86b0"
    program += b"}."
    assert [op.name for op, _, _ in pickletools.genops(program)].count("BUILD") == 2
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", program)
    with pytest.raises(ForeignCheckpointError):
        read_weights(tmp_path / "evil.pt")
    torch.save({"model": WEIGHTS, "list": [np.float64(1)]}, tmp_path / "good.pt")
    assert_same(read_weights(tmp_path / "good.pt"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"model": {"a": np.ones(2)}}, "an object of another program under 'a', where a plain tensor"),
        ({"model": {"a": 1.5}}, "a float under 'a'"),
        ({"model": {1: torch.ones(1)}}, "under 1"),
        ({"model": {"a": {"b": torch.ones(1)}}}, "a dict under 'a'"),
        ({"model": {}}, "holds no tensors"),
        ([torch.ones(1)], "holds a list"),
        ({"model": {"a": torch.ones(2).to_sparse()}}, "an object of another program under 'a'"),
    ],
)
def test_anything_but_tensors_among_the_weights_is_refused(tmp_path, content, told):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ForeignCheckpointError, match=told):
        read_weights(tmp_path / "file.pt")


def test_a_key_that_is_not_there_is_named(tmp_path):
    torch.save({"model": WEIGHTS, "epoch": 3}, tmp_path / "file.pt")
    with pytest.raises(ForeignCheckpointError, match="no weights under 'model_avg': it has model, epoch"):
        read_weights(tmp_path / "file.pt", "model_avg")


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Copy an archive with `change(name, data)` in the place of each record's data."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, change(name, data))


@pytest.mark.parametrize(
    "change",
    [
        lambda name, data: data[:-1] if "/data/" in name else data,
        lambda name, data: data.replace(b"K\x0c", b"K\x0d") if name.endswith("data.pkl") else data,  # the storage
        lambda name, data: data.replace(b"K\x03", b"K\x04") if name.endswith("data.pkl") else data,  # the tensor
        lambda name, data: data[:30] if name.endswith("data.pkl") else data,
        lambda name, data: b"." if name.endswith("data.pkl") else data,
        lambda name, data: b"big" if name.endswith("byteorder") else data,
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change):
    path = tmp_path / "file.pt"
    torch.save({"w": torch.randn(3, 4)}, path)
    rewrite(path, lambda name, data: data)
    read_weights(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("file/byteorder", "little")
    rewrite(path, change)
    with pytest.raises(ForeignCheckpointError):
        read_weights(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "file.pt"
    with pytest.raises(ForeignCheckpointError, match="there is no file"):
        read_weights(path)
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ForeignCheckpointError, match=r"a torch before 1\.6"):
        read_weights(path)
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(ForeignCheckpointError, match="cannot read"):
        read_weights(path)
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(ForeignCheckpointError, match="TorchScript"):
        read_weights(path)
    torch.save(WEIGHTS, path)
    rewrite(path, lambda name, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(ForeignCheckpointError, match="an archive of something else"):
        read_weights(path)
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"12345678{}")
    with pytest.raises(ForeignCheckpointError, match="no safetensors file"):
        read_weights(path)
