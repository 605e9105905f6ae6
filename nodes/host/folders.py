"""The host's folders of our models: made and made known at the start; what changed in them."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths

from .services import ADAPTER_FOLDER, FLOW_FOLDER, RESTORER_FOLDER

_EXTENSIONS = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin"}


def register_folders() -> None:
    """Make the folders of our models, and make them known to the host, with the extensions of weight files."""
    # add_model_folder_path alone would leave the set of extensions empty, which means "every file".
    known = folder_paths.folder_names_and_paths
    for name in (RESTORER_FOLDER, FLOW_FOLDER, ADAPTER_FOLDER):
        folder = str(Path(folder_paths.models_dir) / name)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:  # models that many machines share are often read-only
            logging.getLogger(__name__).info("Cascade VSR: %s could not be made (%s).", folder, error)
        paths, extensions = known.get(name, ([], set()))
        paths = [*paths, *([] if folder in paths else [folder])]
        known[name] = (paths, {*extensions, *_EXTENSIONS})


def newest_change(path: Path) -> int | str:
    """Give the time in ns of the last change to a file, or to any file of a released folder."""
    if not path.exists():
        return "missing"
    parts = [path, *(each for each in path.iterdir() if each.is_dir())] if path.is_dir() else []
    files = (file for part in parts for file in part.iterdir() if file.is_file())
    return max((file.stat().st_mtime_ns for file in files), default=path.stat().st_mtime_ns)
