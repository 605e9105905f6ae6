"""Upscale-A-Video in a real ComfyUI process: a released folder through an artist's graph, native nodes too."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from .uav_release import recorded, write_release

FOLDER = "uav-tiny"


@pytest.fixture(scope="module")
def release(host_server):
    """Put a released folder of tiny networks and a picture where the host finds them."""
    with torch.inference_mode():
        write_release(recorded("pipeline_windowed_video"), host_server.models_dir / "video_restorers" / FOLDER)
    levels = np.random.default_rng(1).integers(0, 256, (17, 19, 3), dtype=np.uint8)
    Image.fromarray(levels).save(host_server.input_dir / "small.png")


def _node(kind, **inputs):
    return {"class_type": kind, "inputs": {key.replace("__", "."): value for key, value in inputs.items()}}


def _prompt(prefix, frames=10):
    decoding = {"lr_frames": ["4", 1], "lr_weight": 1.0, "chunk": 16, "tile": 0}
    mixing = {"direction": "both", "weight": 0.5, "sampling": "nearest", "alpha1": 0.001, "alpha2": 0.05}
    return {
        "1": _node("LoadImage", image="small.png"),
        "2": _node("RepeatImageBatch", image=["1", 0], amount=frames),
        "3": _node("VSRLoadVideoRestorer", restorer=FOLDER, precision="auto", decoder="auto", preset="default"),
        "4": _node(
            "VSRCascadeInput",
            target_vae=["3", 1],
            frames=["2", 0],
            target="scale",
            target__scale=4.0,
            filter="bilinear",
        ),
        "5": _node("CLIPTextEncode", clip=["3", 2], text="a street, best quality, extremely detailed"),
        "6": _node("CLIPTextEncode", clip=["3", 2], text="blur, worst quality"),
        "7": _node(
            "VSRConditioning",
            lr_latent=["4", 0],
            noise_level=0.12,
            seed=1,
            positive=["5", 0],
            negative=["6", 0],
        ),
        "8": _node("VSRLoadFlowModel", flow_model="built-in"),
        "9": _node("VSREstimateMotion", frames=["4", 1], flow_model=["8", 0]),
        "10": _node(
            "VSRLatentPropagation",
            model=["3", 0],
            motion=["9", 0],
            steps="step list",
            steps__step_list="1,2",
            **mixing,
        ),
        "11": _node("VSRTemporalWindows", model=["10", 0], windows="auto"),
        "12": _node("VSRSpatialTiles", model=["11", 0], tiling="auto"),
        "13": _node("CFGGuider", model=["12", 0], positive=["7", 0], negative=["7", 1], cfg=6.0),
        "14": _node("VSRRefineSigmas", model=["3", 0], start_sigma=1.0, steps=3, shift=1.0),
        "15": _node("VSRRestorerSampler", sampler="ddim", eta=0.0),
        "16": _node("VSRSeededNoise", seed=2),
        "17": _node(
            "SamplerCustomAdvanced",
            noise=["16", 0],
            guider=["13", 0],
            sampler=["15", 0],
            sigmas=["14", 0],
            latent_image=["7", 2],
        ),
        "18": _node("VSRTemporalDecode", samples=["17", 0], vae=["3", 1], **decoding),
        "19": _node("SaveImage", images=["18", 0], filename_prefix=prefix),
    }


def _saved(host_server, prefix):
    return [path.read_bytes() for path in sorted(host_server.output_dir.glob(f"{prefix}_*.png"))]


def test_the_whole_graph_runs_with_progress_and_says_the_licence(host_server, client, release):
    info = client.object_info()["VSRLoadVideoRestorer"]
    assert FOLDER in info["input"]["required"]["restorer"][1]["options"]
    assert "non-commercial" in info["description"] and info["output"] == ["MODEL", "VAE", "CLIP"]
    steps = []
    client.run(_prompt("uav"), on_progress=steps.append, timeout=300)
    frames = [np.asarray(Image.open(io.BytesIO(data))) for data in _saved(host_server, "uav")]
    assert [frame.shape for frame in frames] == [(68, 76, 3)] * 10 and min(frame.std() for frame in frames) > 1
    assert {"SamplerCustomAdvanced", "VSRTemporalDecode"} <= {step.title for step in steps if step.total}
    log = host_server.log()
    assert log.count("Upscale-A-Video weights: S-Lab License") == 1
    assert "Traceback" not in log.split(FOLDER, 1)[1]


def test_the_plain_ksampler_runs_and_a_missing_prompt_is_explained(host_server, client, release):
    from cascadevsr.runner.client import ExecutionFailed

    prompt = _prompt("plain", frames=2)
    for number in map(str, (8, 9, 10, 13, 14, 15, 16)):
        del prompt[number]
    prompt["11"]["inputs"]["model"] = ["3", 0]
    settings = {"seed": 1, "steps": 2, "cfg": 6.0, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
    conditions = {"positive": ["7", 0], "negative": ["7", 1], "latent_image": ["7", 2]}
    prompt["17"] = _node("KSampler", model=["12", 0], **conditions, **settings, denoise=1.0)
    client.run(prompt, timeout=120)
    assert len(_saved(host_server, "plain")) == 2
    del prompt["7"]["inputs"]["positive"]
    prompt["17"]["inputs"]["seed"] = 5
    with pytest.raises(ExecutionFailed, match="Upscale-A-Video needs text; got a conditioning without") as error:
        client.run(prompt, timeout=120)
    assert error.value.node_id == "17"
