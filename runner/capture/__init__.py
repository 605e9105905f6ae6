"""A private node of `run.py`: hand frames back exactly, and count network calls, from inside the host.

The host's own savers do not give back the pixels: video is lossy and PNG truncates instead of rounding. This
folder is linked into `custom_nodes/` of the temporary base folder only; it is no part of the pack.
"""

import json
import os

import comfy.model_base
import comfy.model_management
import folder_paths
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io

_CALLS = {"network": 0}


def _count_network_calls() -> None:
    original = comfy.model_base.BaseModel._apply_model

    def counted(self, *arguments, **keywords):
        _CALLS["network"] += 1
        return original(self, *arguments, **keywords)

    comfy.model_base.BaseModel._apply_model = counted


def _device() -> dict:
    """Name the device that the host computes on, and the most bytes of it that were in use at once (CUDA only)."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda":
        return {"device": f"{device.type}, {torch.get_num_threads()} threads", "peak_device_memory": None}
    peak = torch.cuda.max_memory_allocated(device)
    return {"device": torch.cuda.get_device_name(device), "peak_device_memory": peak}


class CaptureFrames(io.ComfyNode):
    """Write frames as rounded RGB, 8 or 16 bits a channel, to `<output>/<name>.rgb`; shape in `<name>.rgb.json`."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CascadeVSRRunnerCapture",
            display_name="Write frames",
            category="_for_testing",
            inputs=[
                io.Image.Input("images"),
                io.String.Input("name"),
                io.Int.Input("bits", default=8, min=8, max=16, step=8, optional=True),
            ],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, images, name, bits=8) -> io.NodeOutput:
        top, kind = (255, np.uint8) if bits == 8 else (65535, np.uint16)
        path = os.path.join(folder_paths.get_output_directory(), os.path.basename(name) + ".rgb")
        bad = 0
        with open(path + ".partial", "wb") as file:
            for frame in images[..., :3]:
                pixels = frame.float().cpu().numpy()
                bad += int(not np.isfinite(pixels).all())
                pixels = np.nan_to_num(pixels, nan=0.0, posinf=1.0, neginf=0.0)
                file.write(np.clip(np.rint(pixels * top), 0, top).astype(kind).tobytes())
        facts = {
            "shape": [*images.shape[:3], 3],
            "frames_not_finite": bad,
            "network_calls": _CALLS["network"],
            **_device(),
        }
        with open(path + ".json", "w", encoding="utf-8") as file:
            json.dump(facts, file)
        os.replace(path + ".partial", path)
        return io.NodeOutput(ui={"cascadevsr": [facts]})


class Place(io.ComfyNode):
    """Tell a latent at which frame of a film its clip begins, in latent frames, for noise that has a place."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CascadeVSRRunnerPlace",
            display_name="Place in the film",
            category="_for_testing",
            inputs=[io.Latent.Input("latent"), io.Vae.Input("vae"), io.Int.Input("frame", min=0, max=2**31)],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, latent, vae, frame) -> io.NodeOutput:
        together = vae.temporal_compression_decode() or 1  # frames that become one of the latent
        return io.NodeOutput({**latent, "vsr_first_frame": frame // together})


class RunnerExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [CaptureFrames, Place]


async def comfy_entrypoint() -> RunnerExtension:
    _count_network_calls()
    return RunnerExtension()
