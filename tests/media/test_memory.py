"""Free memory is that of the container, where there is one."""

from types import SimpleNamespace

import psutil
import pytest
from cascadevsr.media import memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 64 GiB free and 8 GiB of swap; machine(folder, version, limit, used, cached) makes a group."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=8 * GIB))
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")

    def group(folder, version, limit, used, cached):
        place = tmp_path / ("memory" if version == 1 else "") / folder
        place.mkdir(parents=True, exist_ok=True)
        names = memory._NAMES[version]
        (place / names[0]).write_text(f"{limit}\n")
        (place / names[1]).write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")

    group.own = tmp_path / "own"
    return group


def test_without_groups_it_is_the_machines(machine):
    assert memory.free_memory() == 64 * GIB
    assert memory.free_memory(swap=True) == 72 * GIB


def test_a_limit_counts_files_that_can_be_given_up_as_free(machine):
    machine("", 2, 16 * GIB, 10 * GIB, 4 * GIB)
    machine.own.write_text("0::/\n")  # as inside of a container
    assert memory.free_memory() == memory.free_memory(swap=True) == 10 * GIB


def test_the_tightest_of_all_groups_counts(machine):
    machine("", 2, "max", 50 * GIB, 0)
    machine("slice", 2, 8 * GIB, 5 * GIB, 0)
    machine("slice/job", 2, 6 * GIB, GIB, 0)
    machine.own.write_text("0::/slice/job\n")
    assert memory.free_memory() == 3 * GIB


def test_version_1(machine):
    machine("", 1, 9223372036854771712, 50 * GIB, 0)
    machine("docker/abc", 1, 4 * GIB, 3 * GIB, GIB)
    machine.own.write_text("5:devices:/\n4:cpu,memory:/docker/abc\n0::/\n")
    assert memory.free_memory() == 2 * GIB
