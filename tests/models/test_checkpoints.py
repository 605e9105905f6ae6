"""Weight files: both formats round-trip; missing, damaged and malicious files are refused with a reason."""

import collections
import os
import pickle
import sys
import types

import pytest
import torch
from cascadevsr.models.checkpoints import (
    CheckpointError,
    count_blocks,
    load_state,
    save_state,
    shape_of,
    strip_prefix,
)


def tensors():
    return {
        "vae.conv.weight": torch.linspace(-1, 1, 6).view(3, 2).half(),
        "dit.blocks.0.a": torch.arange(4),
        "dit.blocks.1.a": torch.ones(()),
    }


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value) and state[key].dtype == value.dtype


def test_safetensors_round_trip_with_metadata(tmp_path):
    path = tmp_path / "new folder" / "a.safetensors"
    save_state(path, tensors() | {"view": torch.ones(2, 3).T}, {"architecture": "unimmvsr"})
    state, metadata = load_state(path)
    assert metadata == {"architecture": "unimmvsr"} and state.pop("view").shape == (3, 2)
    assert_same(state, tensors())
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]  # no temporary file left


@pytest.mark.parametrize("first", [0x80, ord("P")])
def test_a_header_that_begins_like_a_torch_file(tmp_path, first):
    path = tmp_path / "model.safetensors"
    for length in range(700):  # until the header has the length whose first byte is that of a torch file
        save_state(path, tensors(), {"note": "x" * length})
        if path.read_bytes()[0] == first:
            break
    assert path.read_bytes()[0] == first
    assert load_state(path)[0].keys() == tensors().keys()


def test_a_cut_file_whose_header_begins_like_a_pickle_is_damaged_and_no_pickle(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes((0x1280).to_bytes(8, "little") + b'{"a":{"dtype":"F16"')
    with pytest.raises(CheckpointError, match="complete and readable"):
        load_state(path)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_state(path, {"a": torch.ones(2)})
    with pytest.raises(Exception, match=".*"):
        save_state(path, {"a": torch.ones(2)}, {"bad": 1})
    assert torch.equal(load_state(path)[0]["a"], torch.ones(2)) and len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nest", [None, "state_dict"])
def test_torch_files_are_read(tmp_path, legacy, nest):
    expected = tensors()
    content = collections.OrderedDict(expected)
    if nest:
        content = {nest: content, "global_step": 42000}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    state, metadata = load_state(tmp_path / "a.pt")
    assert_same(state, expected)
    assert metadata == {}


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickled_code_is_refused_and_never_executed(tmp_path, form):
    path, marker = tmp_path / "evil.ckpt", tmp_path / "executed"
    content = {"state_dict": {"a": torch.ones(2)}, "x": Malicious(str(marker))}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["x"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match="evil.ckpt") as error:
        load_state(path)
    assert not marker.exists()
    assert form == "pickle" or "never executed" in str(error.value)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.97])
def test_truncated_files(tmp_path, kind, keep):
    path = tmp_path / "a.bin"
    if kind == "safetensors":
        save_state(path, {"a": torch.ones(500)})
    else:
        torch.save({"a": torch.ones(500)}, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="Checkpoint: .* got a.bin"):
        load_state(path)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="must exist; got .*absent"):
        load_state(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="must exist"):
        load_state(tmp_path)
    (tmp_path / "text").write_text("hello world, this is text")
    with pytest.raises(CheckpointError, match="neither"):
        load_state(tmp_path / "text")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="a list and no tensor"):
        load_state(tmp_path / "list.pt")


def test_bookkeeping_of_a_training_framework_is_skipped_and_never_imported(tmp_path, monkeypatch):
    names = ["pytorch_lightning", "pytorch_lightning.callbacks"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    kinds = {"ModelCheckpoint": object, "AttributeDict": dict}
    kinds = {name: type(name, (base,), {"__module__": names[1]}) for name, base in kinds.items()}
    for name, kind in kinds.items():
        setattr(sys.modules[names[1]], name, kind)
    callback = kinds["ModelCheckpoint"]()
    callback.best = "a"
    content = {
        "state_dict": tensors(),
        "callbacks": {kinds["ModelCheckpoint"]: callback},
        "hyper_parameters": kinds["AttributeDict"](rate=collections.defaultdict(list, a=[1])),
    }
    torch.save(content, tmp_path / "a.ckpt")
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    assert_same(load_state(tmp_path / "a.ckpt")[0], tensors())
    assert not [name for name in sys.modules if name in names]


def test_code_beside_bookkeeping_is_still_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    kind = type("DictConfig", (), {"__module__": "omegaconf"})
    sys.modules["omegaconf"].DictConfig = kind
    torch.save({"a": kind(), "b": os.system, "w": torch.ones(1)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="pickled code"):
        load_state(tmp_path / "a.ckpt")


def test_helpers():
    state = tensors()
    assert strip_prefix(state, "vae.").keys() == {"conv.weight"}
    assert count_blocks(state, "dit.blocks.") == 2 and count_blocks(state, "vae.blocks.") == 0
    assert shape_of(state, "vae.conv.weight") == (3, 2)
    with pytest.raises(CheckpointError, match="'nope'"):
        shape_of(state, "nope")
