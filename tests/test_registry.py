"""What the Comfy Registry and ComfyUI-Manager read: pyproject.toml, the pictures it names, the words to install by."""

import re
import subprocess
from pathlib import Path

import pytest
from cascadevsr.runner.host import MINIMUM_VERSION
from PIL import Image

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer reads TOML")
ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PROJECT["project"]["urls"]["Repository"]


def test_every_address_is_the_repositorys():
    owner, name = re.fullmatch(r"https://github\.com/([\w-]+)/([\w.-]+)", REPOSITORY).groups()
    assert all(address.startswith(REPOSITORY) for address in PROJECT["project"]["urls"].values())
    raw = f"https://raw.githubusercontent.com/{owner}/{name}/main/"
    for kind in ("Icon", "Banner"):
        assert (ROOT / PROJECT["tool"]["comfy"][kind].removeprefix(raw)).is_file()
    blob = f"{REPOSITORY}/blob/main/"
    pages = [address.removeprefix(blob) for address in PROJECT["project"]["urls"].values() if blob in address]
    assert pages and all((ROOT / page).is_file() for page in pages)
    told = re.findall(r"https://github\.com/[\w-]+/ComfyUI-CascadeVSR", (ROOT / "README.md").read_text("utf-8"))
    assert told and set(told) == {REPOSITORY}


def test_pictures_are_of_the_registrys_size():
    icon, banner = (Image.open(ROOT / "assets" / f"{name}.png") for name in ("icon", "banner"))
    assert icon.size == (400, 400) and banner.width * 9 == banner.height * 21


def test_it_is_for_every_machine():
    assert not [each for each in PROJECT["project"]["classifiers"] if "GPU" in each], "Manager warns on all others"
    assert PROJECT["tool"]["comfy"]["requires-comfyui"] == ">=" + ".".join(map(str, MINIMUM_VERSION))
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert required == PROJECT["project"]["dependencies"]


def test_the_changelog_begins_with_this_version():
    chapters = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert chapters[0] == PROJECT["project"]["version"]


def test_the_readme_tells_every_way_to_install():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    chapter = text.split("## Install into your ComfyUI")[1].split("\n## ")[0]
    for way in ("Manager", "python_embeded", "Desktop", f"git clone {REPOSITORY}\n", "requirements.txt"):
        assert way in chapter
    assert f"comfy node install {PROJECT['project']['name']}" in chapter


def test_no_stand_in_is_left():
    mark = "THIS_" + "REPOSITORY"
    found = subprocess.run(["git", "grep", "-l", mark], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == ""
