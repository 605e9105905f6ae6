"""The folders of our models: made, and made known to the host, at the start."""

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
