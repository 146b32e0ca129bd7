"""Weights are read from valid and malicious files of other projects."""

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


def assert_same(weights, expected=WEIGHTS):
    assert list(weights) == list(expected)
    for name, value in expected.items():
        assert weights[name].dtype == value.dtype and torch.equal(weights[name], value), name


@pytest.fixture
def foreign_class(monkeypatch):
    """Create a class of a package that is not installed when the file is read."""
    module = types.ModuleType("icefall.utils")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": "icefall.utils"})
    monkeypatch.setitem(sys.modules, "icefall", types.ModuleType("icefall"))
    monkeypatch.setitem(sys.modules, "icefall.utils", module)
    return module.AttributeDict


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_objects_of_an_icefall_checkpoint_are_ignored(tmp_path, foreign_class, protocol):
    state = nn.Linear(2, 2).state_dict()  # an OrderedDict with a `_metadata` attribute
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


def test_bare_state_dicts_and_safetensors_are_read(tmp_path):
    torch.save(OrderedDict(WEIGHTS), tmp_path / "bare.pt")
    torch.save({"weight": nn.Parameter(torch.ones(2))}, tmp_path / "parameter.pt")
    save_file({name: value.contiguous() for name, value in WEIGHTS.items()}, tmp_path / "weights.safetensors")
    assert_same(read_weights(tmp_path / "bare.pt"))
    assert torch.equal(read_weights(tmp_path / "parameter.pt")["weight"], torch.ones(2))
    weights = read_weights(tmp_path / "weights.safetensors")
    assert_same({name: weights[name] for name in WEIGHTS})
    assert is_foreign(tmp_path / "bare.pt") and is_foreign(tmp_path / "weights.safetensors")


class Calls:
    """An object that is pickled as a function call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("part", ["model", "optimizer"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("call", ["open", "eval", "getattr", "system", "import"])
def test_pickled_call_is_rejected_and_not_executed(tmp_path, part, protocol, call):
    victim = tmp_path / "executed"
    calls = {
        "open": Calls(open, str(victim), "w"),
        "eval": Calls(eval, f"open({str(victim)!r}, 'w')"),
        "getattr": Calls(getattr, victim, "touch"),
        "system": Calls(__import__("os").system, f"touch {victim}"),
        "import": Calls(__import__, "os"),
    }
    content = {"model": dict(WEIGHTS), "optimizer": {}}
    content[part]["evil"] = calls[call]
    torch.save(content, tmp_path / "evil.pt", pickle_protocol=protocol)
    for read in (read_weights, is_foreign):
        with pytest.raises(ForeignCheckpointError, match=r"calls .* when it is unpickled.* was not executed"):
            read(tmp_path / "evil.pt")
    assert not victim.exists()


def test_pickled_call_of_a_known_package_is_not_executed(tmp_path):
    victim = tmp_path / "executed"
    calls = [Calls(np.save, str(victim), 1), Calls(torch.save, {}, str(victim))]
    torch.save({"model": WEIGHTS, "optimizer": calls}, tmp_path / "file.pt")
    assert_same(read_weights(tmp_path / "file.pt"))
    assert not victim.exists() and not victim.with_suffix(".npy").exists()


def test_pickle_cannot_modify_the_reader(tmp_path):
    """A pickle can set attributes of the objects that it gets, including classes and functions."""
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
    ("content", "message"),
    [
        ({"model": {"a": np.ones(2)}}, "an object of another program under 'a', expected a plain tensor"),
        ({"model": {"a": 1.5}}, "a float under 'a'"),
        ({"model": {1: torch.ones(1)}}, "under 1"),
        ({"model": {"a": {"b": torch.ones(1)}}}, "a dict under 'a'"),
        ({"model": {}}, "contains no tensors"),
        ([torch.ones(1)], "contains a list"),
        ({"model": {"a": torch.ones(2).to_sparse()}}, "an object of another program under 'a'"),
    ],
)
def test_weights_that_are_not_plain_tensors_are_rejected(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ForeignCheckpointError, match=message):
        read_weights(tmp_path / "file.pt")


def test_error_for_a_missing_key_lists_the_existing_keys(tmp_path):
    torch.save({"model": WEIGHTS, "epoch": 3}, tmp_path / "file.pt")
    with pytest.raises(ForeignCheckpointError, match="no weights under 'model_avg': it has model, epoch"):
        read_weights(tmp_path / "file.pt", "model_avg")


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Replace the data of each record of an archive by `change(name, data)`."""
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
def test_damaged_file_is_rejected(tmp_path, change):
    path = tmp_path / "file.pt"
    torch.save({"w": torch.randn(3, 4)}, path)
    rewrite(path, lambda name, data: data)
    read_weights(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("file/byteorder", "little")
    rewrite(path, change)
    with pytest.raises(ForeignCheckpointError):
        read_weights(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # the category depends on the version of torch
def test_files_of_other_formats_are_rejected(tmp_path):
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
    with pytest.raises(ForeignCheckpointError, match="an archive of another kind"):
        read_weights(path)
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"12345678{}")
    with pytest.raises(ForeignCheckpointError, match="not a safetensors file"):
        read_weights(path)
