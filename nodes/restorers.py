"""Finds out which restorer a file or folder holds, by its entries, and loads it as MODEL, VAE and CLIP."""

import logging
from pathlib import Path

from ..models.checkpoints import DECODERS, CheckpointError, load_state
from ..models.mgld_vsr import checkpoint as mgld
from ..models.unimmvsr.config import is_unimmvsr
from ..models.upscale_a_video import checkpoint as upscale_a_video
from . import recognise
from .keys import DEFAULT, PRESETS
from .mgld_vsr_host import load_mgld_vsr
from .unimmvsr_host import load_unimmvsr
from .upscale_a_video_host import load_upscale_a_video

_TITLE = "Load Video Restorer"


def load_restorer(path: str | Path, precision: str, decoder: str = DECODERS[0], preset: str = DEFAULT):
    """Read a weight file or a released folder and build (MODEL, VAE, CLIP).

    VAE and CLIP are None where the file has none. Everything unusable is a CheckpointError.
    """
    for name, value, allowed in (("decoder", decoder, DECODERS), ("preset", preset, PRESETS)):
        if value not in allowed:
            raise ValueError(
                f"{_TITLE}: {name} must be {' or '.join(allowed)}; got {value!r}. Use {allowed[0]}."
            )
    path = Path(path)
    try:
        if mgld.is_release_folder(path):
            return load_mgld_vsr(mgld.open_folder(path), path, precision, decoder, preset)
        if path.is_dir():
            return load_upscale_a_video(upscale_a_video.open_folder(path), path, precision, decoder, preset)
        state, metadata = load_state(path)
        if is_unimmvsr(state):
            logging.getLogger(__name__).info("Loaded %s (unimmvsr)", path.name)
            return *load_unimmvsr(state, path, precision), None
        for open_state, load in (
            (mgld.open_state, load_mgld_vsr),
            (upscale_a_video.open_state, load_upscale_a_video),
        ):
            if (release := open_state(state, metadata, path)) is not None:
                del state
                return load(release, path, precision, decoder, preset)
        raise recognise.refuse(path, state)
    except CheckpointError as error:
        raise CheckpointError(f"{_TITLE}: {error}") from error
