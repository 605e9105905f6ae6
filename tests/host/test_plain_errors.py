"""Errors open with their message: the editor writes the module path of every kind of error that is not Python's own."""

import ast
from fractions import Fraction

import pytest
import torch

# Kinds of errors of our own: those that are tried here, and what FreeU meets (test_accelerators.py)
OWN = {"CheckpointError", "NotFinite", "MediaError", "_MissingFact"}


def test_every_kind_is_tried(repository):
    found = set()
    for folder in ("models", "media", "nodes"):
        for file in (repository / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef) and any("Error" in ast.unparse(base) for base in node.bases):
                    found.add(node.name)
    assert found == OWN


@pytest.mark.parametrize("loader", ["restorer", "flow", "adapter"])
def test_files_that_cannot_be_used(core, model, tmp_path, loader, monkeypatch):
    from cascadevsr.nodes import adapters
    from cascadevsr.nodes.loaders import load_restorer
    from cascadevsr.nodes.motion import load_flow_model

    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"no weights")
    monkeypatch.setattr(adapters, "adapter_path", lambda name: path)
    load = {
        "restorer": lambda: load_restorer(path, "auto"),
        "flow": lambda: load_flow_model(path),
        "adapter": lambda: adapters.LoadVSRAdapter.execute(model, path.name, 1.0),
    }[loader]
    with pytest.raises(ValueError) as caught:
        load()
    assert type(caught.value) is ValueError


def test_numbers_that_are_not_finite(core, vae):
    from cascadevsr.models.layout.pieces import NotFinite

    def broken(*_):
        raise NotFinite("frames must be finite.")

    with pytest.raises(ValueError, match="^VAE: frames must be finite") as caught:
        vae.encode_clips(torch.rand(1, 16, 16, 3), piece_encoder=lambda *_: broken)
    assert type(caught.value) is ValueError


def test_a_film_that_the_hosts_nodes_read(core, tmp_path, monkeypatch):
    from cascadevsr.media.errors import MediaError
    from cascadevsr.nodes.host import film
    from cascadevsr.nodes.host.film import Film, even_timeline

    def broken(*_, **__):
        raise MediaError("IN: must be readable.")

    monkeypatch.setattr(film, "read_images", broken)
    monkeypatch.setattr(film, "plan", broken)
    video = Film(even_timeline(torch.rand(2, 16, 16, 3), Fraction(24)))
    for work in (video.get_components, lambda: video.save_to(str(tmp_path / "a.mp4"))):
        with pytest.raises(ValueError, match="^Film: must be readable") as caught:
            work()
        assert type(caught.value) is ValueError
