"""Set-up: hosts are found in order, archives are not trusted, interrupted work is told from finished."""

import io
import json
import socket
import subprocess
import sys
import tarfile
import threading
import time

import pytest
from cascadevsr.runner import cli, environment, host, paths, server
from cascadevsr.runner.errors import RunnerError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADEVSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path / "cache"


@pytest.mark.parametrize("typed", ["", "-k seams -x", "tests/models --lf", "-- -k seams"])
def test_arguments_of_test_are_pytests(typed):
    assert cli.parser().parse_args(["test", *typed.split()]).pytest == typed.split()


def make_host(path, version="0.30.0"):
    for name in ("comfy", "comfy_api"):
        (path / name).mkdir(parents=True)
    for name in ("main.py", "nodes.py", "requirements.txt"):
        (path / name).write_text("")
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return path


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 2 if kind == tarfile.REGTYPE else 0
            info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(b"ok") if info.size else None)
    return path


GOOD = ("x-1/vendor/ComfyUI/comfy/sd.py", tarfile.REGTYPE)


def test_unpack_takes_the_host_only(tmp_path):
    members = [GOOD, ("x-1/setup.py", tarfile.REGTYPE), ("x-1/vendor/ComfyUI/models", tarfile.DIRTYPE)]
    host.unpack(archive(tmp_path / "a.tar.gz", members), tmp_path / "out")
    assert (tmp_path / "out" / "comfy" / "sd.py").read_bytes() == b"ok"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["comfy", "models"]


@pytest.mark.parametrize(
    "name, kind",
    [
        ("/x-1/vendor/ComfyUI/a.py", tarfile.REGTYPE),
        ("x-1/vendor/ComfyUI/../../../../a.py", tarfile.REGTYPE),
        ("x-1\\..\\a.py", tarfile.REGTYPE),
        ("C:/a.py", tarfile.REGTYPE),
        ("x-1/vendor/ComfyUI/link", tarfile.SYMTYPE),
        ("x-1/vendor/ComfyUI/hard", tarfile.LNKTYPE),
        ("x-1/vendor/ComfyUI/fifo", tarfile.FIFOTYPE),
    ],
)
def test_unpack_refuses_a_malicious_archive_whole(tmp_path, name, kind):
    with pytest.raises(RunnerError, match="unsafe member"):
        host.unpack(archive(tmp_path / "a.tar.gz", [GOOD, (name, kind)]), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_hosts_are_found_in_order(cache, tmp_path, monkeypatch):
    clone = tmp_path / "ComfyUI" / "custom_nodes" / "pack"
    clone.mkdir(parents=True)
    elsewhere = tmp_path / "clone"
    assert host.find_host(elsewhere) is None
    make_host(host.cached_path())
    assert host.find_host(elsewhere).path == host.cached_path() and not host.find_host(elsewhere).external
    make_host(tmp_path / "ComfyUI")
    assert host.find_host(clone).path == tmp_path / "ComfyUI"
    monkeypatch.setenv("COMFYUI_PATH", str(make_host(tmp_path / "mine")))
    found = host.find_host(clone)
    assert found.path == tmp_path / "mine" and found.external and found.version == "0.30.0"


def test_a_wrong_or_old_comfyui_path_is_an_error(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(RunnerError, match="must be a ComfyUI folder"):
        host.find_host()
    monkeypatch.setenv("COMFYUI_PATH", str(make_host(tmp_path / "old", "0.3.60")))
    with pytest.raises(RunnerError, match=r"0\.25\.0 or newer; got 0\.3\.60"):
        host.find_host()


def test_a_failing_download_leaves_nothing(cache):
    cache.mkdir()
    with pytest.raises(RunnerError, match="COMFYUI_PATH"):
        host.fetch_host([sys.executable, "-c", "import sys; sys.exit('no network')"], say=lambda text: None)
    assert [p.name for p in cache.iterdir()] == ["host.lock"]


def test_stamp_knows_finished_from_unfinished(cache):
    place = cache / "env"
    layers = ("base", "test")
    assert environment.missing_layers(place, layers, None) == ["base", "test"]
    python = environment.python_of(place)
    python.parent.mkdir(parents=True)
    python.write_text("")
    assert environment.missing_layers(place, layers, None) == ["base", "test"]  # interrupted: no stamp
    stamp = {"base": environment.fingerprint("base", None)}
    paths.write_atomic(place / environment.STAMP, json.dumps(stamp))
    assert environment.missing_layers(place, layers, None) == ["test"]
    (place / environment.STAMP).write_text('{"base": "ab')  # damaged
    assert environment.missing_layers(place, layers, None) == ["base", "test"]
    paths.write_atomic(place / environment.STAMP, json.dumps({"base": "of older pins"}))
    assert "base" in environment.missing_layers(place, layers, None)
    python.unlink()
    assert environment.read_stamp(place) == {}


def test_an_external_host_gets_its_own_environment_only_for_other_requirements(cache, tmp_path):
    own = host.Host(make_host(tmp_path / "mine"), "COMFYUI_PATH", external=True)
    assert environment.environment_path(own) != environment.environment_path(None) == cache / "env"
    make_host(host.cached_path())
    assert environment.environment_path(own) == cache / "env"
    assert environment.fingerprint("base", own) == environment.fingerprint("base", None)
    own.requirements.write_text("something>=2")
    assert environment.environment_path(own) != cache / "env"


def test_a_host_that_does_not_ask_for_torchaudio_runs_without_it(tmp_path):
    place = host.Host(make_host(tmp_path / "mine"), "COMFYUI_PATH", external=True)
    assert "torchaudio" not in environment._modules(place) and "torchvision" in environment._modules(place)
    place.requirements.write_text("torch\ntorchaudio\n")
    assert "torchaudio" in environment._modules(place)


def test_set_up_asks_for_space_first(cache, monkeypatch):
    monkeypatch.setattr(paths, "free_bytes", lambda path: 2**30)
    with pytest.raises(RunnerError, match="CASCADEVSR_CACHE"):
        environment.prepare()
    assert not (cache / "env").exists()


def test_locks_exclude(tmp_path, capsys):
    order = []

    def second():
        with paths.locked(tmp_path / "lock", "waiting"):
            order.append("second")

    with paths.locked(tmp_path / "lock", "waiting"):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.1)
        order.append("first")
    other.join()
    assert order == ["first", "second"] and "waiting" in capsys.readouterr().out


def test_write_atomic_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a"
    paths.write_atomic(file, "old")
    monkeypatch.setattr(paths.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        paths.write_atomic(file, "new")
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_ports():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(RunnerError, match=f"{port} is taken"):
            server.choose_port(port)
        assert server.choose_port(None, preferred=port) != port
    assert server.port_is_free(server.choose_port(None))
    with pytest.raises(RunnerError, match="1 to 65535"):
        server.choose_port(70000)


def test_a_host_that_dies_shows_its_log(tmp_path):
    place = make_host(tmp_path / "host")
    (place / "main.py").write_text("raise SystemExit('wrong weather')")
    broken = server.HostServer(host.Host(place, "test", True), tmp_path / "base", cpu=True)
    with pytest.raises(RunnerError, match="(?s)stopped while starting.*wrong weather"):
        broken.start()


def test_the_door_opens_without_any_package(repository):
    command = [sys.executable, "-S", "-I", str(repository / "run.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("demo", "test", "serve", "upscale", "bench", "train"))


def test_errors_are_sentences_with_exit_code_1(monkeypatch, capsys, tmp_path, repository):
    monkeypatch.setenv(environment.INSIDE, str(tmp_path))
    assert cli.main(["upscale", "in.mp4", "out.mp4", "--workflow", "no-such"]) == 1
    assert capsys.readouterr().err.startswith("run.py upscale: --workflow: must be")
