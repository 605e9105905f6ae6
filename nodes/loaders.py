"""Load Video Restorer: a file or released folder as MODEL, VAE and CLIP.

1. The list of files is that of the host's folder; files that make up one release are listed as its folder.
2. The system whose entries a file has opens it (`open_restorer`), and builds MODEL, VAE and CLIP.
3. Each of the three can be built again from the path alone: the host asks for that on several GPUs.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePath

import comfy.model_management as management
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models.checkpoints import DECODERS, CheckpointError, load_state
from .host import services
from .host.keys import DEFAULT, PRESET_KEY, PRESETS
from .host.model import log_licence
from .recognise import refuse
from .systems import all_systems
from .systems.base import Loading, System

_TITLE = "Load Video Restorer"
_BUILT_IN_FILE = Path(__file__).parent.parent / "models" / "weights" / "unimmvsr-tiny.safetensors"


class LoadVideoRestorer(io.ComfyNode):
    """Loads the built-in restorer or one from models/video_restorers."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        licences = " ".join(system.licence for system in all_systems() if system.licence)
        return io.Schema(
            node_id="VSRLoadVideoRestorer",
            display_name=_TITLE,
            category=services.CATEGORY,
            description="Loads a video super-resolution network, its video VAE and its text encoder. The built-in one "
            "needs no download and runs on a CPU. Upscale-A-Video and MGLD-VSR are read from the folder of their "
            f"published files, or a file converted from it. {licences}",
            search_aliases=[
                "video upscale model",
                "super resolution",
                "unimmvsr",
                "upscale-a-video",
                "mgld",
                "mgld-vsr",
                "load upscaler",
                "vsr",
                "cascade vsr",
            ],
            inputs=[
                io.Combo.Input(
                    "restorer",
                    options=restorer_names(),
                    default=services.BUILT_IN,
                    tooltip="The built-in model, or a file or released folder from models/video_restorers.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *services.PRECISIONS],
                    default="auto",
                    advanced=True,
                    tooltip="auto: fp32 on a CPU, the GPU's best format for the network elsewhere. The VAE of the "
                    "built-in model stays in fp32, except where a CPU restores frames faster in bf16 or int8; those of "
                    "Upscale-A-Video and MGLD-VSR use bf16 where they can.",
                ),
                io.Combo.Input(
                    "decoder",
                    options=list(DECODERS),
                    default=DECODERS[0],
                    optional=True,
                    tooltip=(
                        "Upscale-A-Video: plain is vae_3d; lr-conditioned is vae_video, which is steadier and suits "
                        "animation; auto takes plain if it is present. MGLD-VSR: lr-conditioned is its sequence "
                        "decoder, plain the decoder of Stable Diffusion; auto takes the sequence decoder."
                    ),
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=DEFAULT,
                    optional=True,
                    advanced=True,
                    tooltip="reference repeats the published programs of Upscale-A-Video and MGLD-VSR number by "
                    "number; default blends windows and decoding spans smoothly and decodes in bf16 where it can.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The network, for any sampler."),
                io.Vae.Output(tooltip="Its video VAE, for Cascade Input and Temporal Decode."),
                io.Clip.Output(tooltip="Its text encoder, for CLIP Text Encode; empty if it has none."),
            ],
        )

    @classmethod
    def execute(cls, restorer: str, precision: str, decoder: str = DECODERS[0], preset: str = DEFAULT):
        """Load the file or folder behind the name."""
        return io.NodeOutput(*load_restorer(restorer_path(restorer), precision, decoder, preset))

    @classmethod
    def validate_inputs(cls, restorer: str):
        """Say before the run where a missing restorer belongs; the host would only say that it is missing."""
        try:
            restorer_path(restorer)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, restorer: str, precision: str, decoder: str = DECODERS[0], preset: str = DEFAULT):
        """Load again when the file changed."""
        path = restorer_path(restorer)
        return f"{path}:{services.newest_change(path)}:{precision}:{decoder}:{preset}"


def restorer_names() -> list[str]:
    """List what the node offers: the built-in model, released folders, then other weight files."""
    files = [PurePath(name) for name in folder_paths.get_filename_list(services.RESTORER_FOLDER)]
    folders, hidden = set(), set()
    for layout in [system.folder for system in all_systems() if system.folder is not None]:

        def matching(pattern: str) -> dict[PurePath, PurePath]:  # {file: the folder that the pattern begins at}
            return {file: file.parents[pattern.count("/")] for file in files if file.match(pattern)}

        complete = set.intersection(*(set(matching(pattern).values()) for pattern in layout.needs))
        if not any("/" in pattern for pattern in layout.needs):
            complete.discard(PurePath())  # files in the host's own folder: there is no name but theirs
        folders |= complete
        for pattern in layout.hides:
            hidden |= {file for file, folder in matching(pattern).items() if folder in complete}
    return [services.BUILT_IN, *sorted(map(str, folders)), *(str(file) for file in files if file not in hidden)]


def restorer_path(name: str) -> Path:
    """Find a restorer by the name in the list."""
    if name == services.BUILT_IN:
        return _BUILT_IN_FILE
    folders = {services.RESTORER_FOLDER: restorer_names()}
    return services.listed_path(_TITLE, "restorer", folders, name, f", or choose {services.BUILT_IN!r}")


def load_restorer(path: str | Path, precision: str, decoder: str = DECODERS[0], preset: str = DEFAULT) -> tuple:
    """Read a weight file or a released folder and build (MODEL, VAE, CLIP).

    VAE and CLIP are None where the file has none. Of everything unusable the error says why.
    """
    services.check_choice(_TITLE, "precision", precision, ["auto", *services.PRECISIONS])
    services.check_choice(_TITLE, "decoder", decoder, DECODERS)
    services.check_choice(_TITLE, "preset", preset, PRESETS)
    path, loading = Path(path), Loading(precision, decoder, preset)
    with services.titled(_TITLE):
        system, release = open_restorer(path)
        try:
            vae = system.load_vae(release, loading, False)
            clip = None if system.load_clip is None else system.load_clip(release, loading, False)
            model = system.load_model(release, loading, False)
        except CheckpointError:
            raise
        except (KeyError, IndexError, RuntimeError, ZeroDivisionError, ValueError) as error:
            if management.is_oom(error):
                raise
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise CheckpointError(
                f"the entries must fit the {system.name} architecture; got {path.name}: {reason}. The file is damaged "
                "or of another version: download it again."
            ) from error
    _mark(model, system, loading)
    if vae is not None:
        vae.system = system
    patchers = {"load_model": model, "load_vae": vae and vae.patcher, "load_clip": clip and clip.patcher}
    for part, patcher in patchers.items():
        if patcher is not None:
            patcher.cached_patcher_init = (_load_again, (part, system, path, loading))
    missing = [name for name, value in (("VAE", vae), ("CLIP", clip)) if value is None]
    without = f"; it has no {' and no '.join(missing)}" if missing else ""
    logging.getLogger(__name__).info("Loaded %s (%s, preset %s)%s", path.name, system.name, preset, without)
    if system.licence:
        log_licence(system.licence)
    return model, vae, clip


def open_restorer(path: Path) -> tuple[System, object]:
    """Find the system that a file or folder is of, and open it; CheckpointError where there is none."""
    systems = all_systems()
    if path.is_dir():
        for system in systems:  # a part may be missing: the system says which
            if system.folder is not None and any(any(path.glob(pattern)) for pattern in system.folder.needs):
                return system, system.open_release(path)
        raise refuse(path, (), systems)
    state, metadata = load_state(path)
    for system in systems:
        if any(mark in key for key in state for mark in system.marks):
            release = system.open_state(state, metadata, path)
            if release is not None:
                return system, release
    raise refuse(path, state, systems)


def _mark(model: ModelPatcher, system: System, loading: Loading) -> None:
    """Let a MODEL know its system and preset: nodes ask for them."""
    model.model.system = system
    model.model_options[PRESET_KEY] = loading.preset


def _load_again(part: str, system: System, path: Path, loading: Loading, disable_dynamic: bool = False) -> ModelPatcher:
    """Build a fresh patcher of one part: the host asks for it on several GPUs and for hooks."""
    with services.titled(_TITLE):
        loaded = getattr(system, part)(system.open_release(path), loading, disable_dynamic)
    if part != "load_model":
        return loaded.patcher
    _mark(loaded, system, loading)
    return loaded
