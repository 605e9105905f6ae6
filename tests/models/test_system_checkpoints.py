"""What the checkpoint.py of every published system offers: `run.py convert` finds systems by it."""

from importlib import import_module

import pytest
import torch
from cascadevsr.models.checkpoints import CheckpointError, save_state

SYSTEMS = ["mgld_vsr", "upscale_a_video"]


@pytest.fixture(params=SYSTEMS)
def system(request):
    return import_module(f"cascadevsr.models.{request.param}.checkpoint")


def test_it_says_what_it_is(system):
    assert system.ARCHITECTURE in SYSTEMS and system.NAME in system.LICENCE and system.HOLDS
    assert "non-commercial" in system.LICENCE


def test_weights_of_others_are_not_its_own(system, tmp_path):
    other, empty, target = tmp_path / "other.safetensors", tmp_path / "empty", tmp_path / "out.safetensors"
    state = {"a": torch.zeros(2)}
    save_state(other, state)
    empty.mkdir()
    assert system.open_state(state, {}, other) is None and not system.is_release_folder(empty)
    assert not system.convert(other, target, False, print) and not system.convert(empty, target, False, print)
    with pytest.raises(CheckpointError, match=f"must hold {system.NAME}.*got other.safetensors"):
        system.open_release(other)
    with pytest.raises(CheckpointError, match="folder .*must hold .*got empty"):
        system.open_release(empty)
    assert not target.exists()
