"""Import the pack without the host, and lend tests a real ComfyUI and a browser."""

import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parent.parent

if (
    "cascadevsr" not in sys.modules
):  # `cascadevsr.models...` without running the pack's entry file, which needs the host
    _package = types.ModuleType("cascadevsr")
    _package.__path__ = [str(ROOT)]
    sys.modules["cascadevsr"] = _package

from cascadevsr.runner import browser, environment, host  # noqa: E402
from cascadevsr.runner.client import HostClient  # noqa: E402
from cascadevsr.runner.errors import RunnerError  # noqa: E402
from cascadevsr.runner.paths import scratch_folder  # noqa: E402
from cascadevsr.runner.server import HostServer  # noqa: E402


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def comfyui() -> host.Host:
    """The ComfyUI tree to test with: the one run.py chose, else the one it would choose."""
    chosen = environment.host_inside() or host.find_host() or host.fetch_host([sys.executable, "-m", "pip"])
    return chosen


@pytest.fixture(scope="session")
def host_server(comfyui):
    """A real ComfyUI on the CPU with the pack, over a temporary base folder; one for the whole session."""
    with scratch_folder("test-") as base, HostServer(comfyui, base, cpu=True, capture=True) as server:
        yield server


@pytest.fixture
def client(host_server) -> HostClient:
    """A fresh client of the session's ComfyUI; fails early with the log when that has died."""
    if not host_server.alive():
        pytest.fail(f"ComfyUI has died.\n{host_server.tail(60)}")
    return HostClient(host_server.url, host_server)


@pytest.fixture(scope="session")
def browser_tools() -> browser.BrowserTools:
    """Chromium, node and playwright-core; without them browser tests fail in CI and are skipped elsewhere."""
    try:
        return browser.ensure_browser()
    except RunnerError as error:
        if browser.in_ci():
            pytest.fail(str(error))
        pytest.skip(str(error))
