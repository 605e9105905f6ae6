"""The pack in a real ComfyUI process: schemas, loading, errors as users see them, interruption, workflows."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ..image_model import write_upscaler
from .mgld_release import write_checkpoints
from .uav_release import recorded, write_release

SNAPSHOT = Path(__file__).with_name("object_info.json")
PAGES = list(Path(__file__).parents[2].glob("js/docs/*.md"))
UPDATE = "CASCADEVSR_UPDATE_SNAPSHOTS"  # set it to 1 to write the snapshot anew after a wanted change
RESTORER = "tiny.safetensors"


@pytest.fixture(scope="module")
def files(host_server, tiny_file):
    """Put the tiny restorer, bad weight files and a picture where the host finds them."""
    folder = host_server.models_dir / "video_restorers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESTORER).write_bytes(tiny_file.read_bytes())
    (folder / "cut.safetensors").write_bytes(tiny_file.read_bytes()[:5000])
    (folder / "code.pt").write_bytes(pickle.dumps({"state_dict": _Malicious()}, protocol=2))
    levels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).resize((64, 48), Image.Resampling.BICUBIC).save(buffer, "PNG")
    (host_server.input_dir / "picture.png").write_bytes(buffer.getvalue())


class _Malicious:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def _node(kind, **inputs):
    return {"class_type": kind, "inputs": {key.replace("__", "."): value for key, value in inputs.items()}}


_SAMPLER = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def _prompt(frames=5, scale=2.0, restorer=RESTORER, prefix="clip", **sampler):
    target = {"target": "scale", "target__scale": scale, "filter": "bilinear"}
    conditions = {"positive": ["5", 0], "negative": ["5", 1], "latent_image": ["5", 2]}
    decoding = {"lr_frames": ["4", 1], "lr_weight": 1.0, "chunk": 8, "tile": 0}
    return {
        "1": _node("LoadImage", image="picture.png"),
        "2": _node("RepeatImageBatch", image=["1", 0], amount=frames),
        "3": _node("VSRLoadVideoRestorer", restorer=restorer, precision="auto"),
        "4": _node("VSRCascadeInput", target_vae=["3", 1], frames=["2", 0], **target),
        "5": _node("VSRConditioning", lr_latent=["4", 0], noise_level=0.1, seed=3),
        "6": _node("KSampler", model=["3", 0], **conditions, **_SAMPLER | sampler),
        "7": _node("VSRTemporalDecode", samples=["6", 0], vae=["3", 1], **decoding),
        "8": _node("ImageFromBatch", image=["7", 0], batch_index=frames - 2, length=2),
        "9": _node("SaveImage", images=["8", 0], filename_prefix=prefix),
    }


def _saved(host_server, prefix):
    return [path.read_bytes() for path in sorted(host_server.output_dir.glob(f"{prefix}_*.png"))]


def _pixels(data):
    return [np.asarray(Image.open(io.BytesIO(part))) for part in data]


# What the host itself has loaded by then does not count; forks share it. Seconds of the processor, not of the clock.
_LOADING = """
import asyncio, importlib.util, multiprocessing, sys, time
sys.path[0], pack, sys.argv = sys.argv[1], sys.argv[2], ["main.py", "--cpu", "--base-directory", sys.argv[3]]
import comfy.options
comfy.options.enable_args_parsing()
import nodes, server, comfy_extras.nodes_custom_sampler, comfy_extras.nodes_upscale_model, comfy_extras.nodes_video

def load(answers):
    began = time.process_time()
    spec = importlib.util.spec_from_file_location("pack", pack + "/__init__.py", submodule_search_locations=[pack])
    sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    async def enter():
        extension = await module.comfy_entrypoint()
        await extension.on_load()
        return [node.GET_SCHEMA() for node in await extension.get_node_list()]
    count = len(asyncio.run(enter()))
    answers.put((time.process_time() - began, count))

fork = multiprocessing.get_context("fork")
for _ in range(4):
    answers = fork.SimpleQueue()
    child = fork.Process(target=load, args=(answers,))
    child.start()
    child.join()
    print(*answers.get())
"""


def test_loads_quickly(comfyui, repository, tmp_path):
    command = [sys.executable, "-c", _LOADING, str(comfyui.path), str(repository), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert all(int(count) > 20 for _, count in found) and min(float(seconds) for seconds, _ in found) < 0.5, found


def test_loads_without_a_warning_and_makes_its_model_folders(host_server, client):
    log = host_server.log().split("got prompt", 1)[0]  # other tests cause errors on purpose
    pack = [line for line in log.splitlines() if re.search(r"cascadevsr", line, re.IGNORECASE)]
    bad = re.compile(r"warning|failed|error|traceback|deprecated", re.IGNORECASE)
    assert not [line for line in pack if bad.search(line)], "\n".join(pack)
    assert "Traceback" not in log
    for name in ("video_restorers", "optical_flow", "vsr_adapters"):
        assert (host_server.models_dir / name).is_dir()


def test_object_info_is_the_recorded_one(client):
    info = {name: value for name, value in client.object_info().items() if name.startswith("VSR")}
    for node, name in (("VSRLoadVideoRestorer", "restorer"), ("VSRLoadFlowModel", "flow_model")):
        files = info[node]["input"]["required"][name][1]
        assert files["options"][0] == files["default"] == "built-in"
        files["options"] = ["built-in"]  # the rest is what lies in the folders
    info["VSRLoadFilm"]["input"]["required"]["file"][1]["options"] = []
    for value in info.values():
        value.pop("python_module")
    text = json.dumps(info, indent=1, sort_keys=False, ensure_ascii=False) + "\n"
    if os.environ.get(UPDATE) == "1":
        SNAPSHOT.write_text(text, encoding="utf-8")
    recorded = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert json.loads(text) == recorded, f"set {UPDATE}=1 if this is wanted"


def test_every_input_and_node_is_explained(client):
    info = {name: value for name, value in client.object_info().items() if name.startswith("VSR")}
    assert set(info) == {page.stem for page in PAGES} and len(info) > 20
    for name, value in info.items():
        assert value["category"] == "video/upscaling/Cascade VSR"
        assert value["description"] and "cascade vsr" in value["search_aliases"] and all(value["output_tooltips"]), name
        inputs = [item for group in ("required", "optional") for item in value["input"].get(group, {}).items()]
        for key, (kind, facts) in inputs:
            assert facts.get("tooltip"), f"{name}.{key}"
            for option in facts.get("options", ()) if "DYNAMIC" in str(kind) else ():
                inner = [entry for part in option["inputs"].values() for entry in part.values()]
                assert all(nested.get("tooltip") for _, nested in inner), f"{name}.{key}"


def test_a_clip_goes_through_with_progress(host_server, client, files):
    steps = []
    result = client.run(_prompt(prefix="through"), on_progress=steps.append, timeout=120)
    assert [image.shape for image in _pixels(_saved(host_server, "through"))] == [(96, 128, 3)] * 2
    assert {"VSRCascadeInput", "KSampler", "VSRTemporalDecode"} <= {step.title for step in steps if step.total}
    assert result.outputs


@pytest.mark.parametrize(
    ("change", "node", "message"),
    [
        ({"restorer": "cut.safetensors"}, "3", "Load Video Restorer: .*must be complete and readable"),
        ({"restorer": "code.pt"}, "3", "Load Video Restorer: .*carries pickled code"),
        ({"scheduler": "kl_optimal"}, "6", "must give finite sigmas; got .*nan"),
        ({"sampler_name": "uni_pc"}, "6", "cannot finish in 1 step"),
        ({"denoise": 0.5, "steps": 4}, "6", "empty latent must start at full noise"),
        ({"scale": 0.1}, None, None),
    ],
)
def test_errors_reach_the_user(client, host_server, files, change, node, message):
    from cascadevsr.runner.client import ExecutionFailed

    prefix = f"bad{abs(hash(str(change)))}"
    if node is None:  # smallest allowed scale of a 64x48 picture: 6x5, odd but fine
        client.run(_prompt(prefix=prefix, **change), timeout=60)
        assert _pixels(_saved(host_server, prefix))[0].shape == (5, 6, 3)
        return
    with pytest.raises(ExecutionFailed, match=message) as error:
        client.run(_prompt(prefix=prefix, **change), timeout=60)
    assert error.value.node_id == node
    assert not _saved(host_server, prefix)
    assert "never be printed" not in host_server.log()


def test_an_unknown_restorer_is_refused_before_the_run(client, files):
    from cascadevsr.runner.client import PromptRejected

    with pytest.raises(PromptRejected, match="restorer"):
        client.run(_prompt(restorer="../../secret.pt"), timeout=60)


def test_interrupt_leaves_nothing_and_a_rerun_gives_the_same_bytes(host_server, client, files):
    from cascadevsr.runner.client import Interrupted

    long = {"frames": 61, "scale": 6.0}
    for title in ("VSRCascadeInput", "VSRTemporalDecode"):
        begun = []

        def interrupt(step, title=title, begun=begun):
            if step.title == title and step.value and not begun:
                begun.append(time.monotonic())
                client.interrupt()

        with pytest.raises(Interrupted):
            client.run(_prompt(prefix="stopped", **long), on_progress=interrupt, timeout=120)
        assert time.monotonic() - begun[0] < 5
        assert not _saved(host_server, "stopped")
    client.run(_prompt(prefix="stopped", **long), timeout=120)
    for prefix in ("fresh-1", "fresh-2", "fresh-3"):
        client.free()
        time.sleep(1.5)  # the host frees after the prompt that ended: about a second later, on a busy machine more
        result = client.run(_prompt(prefix=prefix, **long), timeout=120)
        if "7" not in result.cached_nodes:
            break
    assert "7" not in result.cached_nodes, "nothing was freed"
    stopped, fresh = (_pixels(_saved(host_server, name)) for name in ("stopped", prefix))
    assert len(stopped) == 2 and all(np.array_equal(a, b) for a, b in zip(stopped, fresh, strict=True))


WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows" / "api").glob("*.json"))
SAVED = sorted((Path(__file__).resolve().parents[1] / "graphs_0_1_0").glob("*.json"))


def _with_small_files(host_server, path):
    """Read a workflow, let it use tiny networks and a tiny clip, and write those."""
    from cascadevsr.media.writer import write_video

    frames = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), dtype=np.uint8)
    frames = frames[:2] if "MGLD" in path.stem else frames  # that one restores at 512 px
    write_video(host_server.input_dir / "clip.mp4", frames, 24)
    write_video(host_server.input_dir / "original.mp4", frames.repeat(2, 1).repeat(2, 2), 24)
    prompt = json.loads(path.read_text(encoding="utf-8"))
    restorers = host_server.models_dir / "video_restorers"  # tiny networks where the templates' notes tell
    with torch.inference_mode():
        if "Upscale-A-Video" in path.stem:
            write_release(recorded("pipeline_short_3d"), restorers / "upscale_a_video")
        if "MGLD" in path.stem:
            write_checkpoints(restorers / "mgld_vsr")
        if "any-Model" in path.stem:
            write_upscaler(host_server.models_dir / "upscale_models" / "4x-model.safetensors")
    if "SeedVR2" in path.stem:  # its VAE has no tiny form that the host would recognise; test_seedvr2.py has the model
        prompt["4"] = {"class_type": "VSRLoadVideoRestorer", "inputs": {"restorer": "built-in", "precision": "auto"}}
        del prompt["5"]
        prompt["11"]["inputs"]["vae"] = ["4", 1]
    for node in prompt.values():
        if node["class_type"] == "VSRSampleClip" and node["_meta"]["title"] == "Input":
            node["class_type"], node["inputs"] = "LoadVideo", {}
        if node["class_type"] in ("VSRLoadFilm", "LoadVideo"):
            original = "Reference" in node.get("_meta", {}).get("title", "")
            node["inputs"]["file"] = "original.mp4" if original else "clip.mp4"
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "picture.png"
        if "target.short_side" in node["inputs"]:
            node["inputs"]["target.short_side"] = 96
        if node["inputs"].get("steps") == 50:
            node["inputs"]["steps"] = 2
        if node["inputs"].get("restorer") == "built-in":
            node["inputs"]["restorer"] = RESTORER  # in a second, with the same graph
    return prompt


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_shipped_workflow_runs(host_server, client, files, path):
    result = client.run(_with_small_files(host_server, path), timeout=180)
    assert result.outputs


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_a_graph_of_0_1_0_is_still_accepted(host_server, client, files, path):
    prompt = _with_small_files(host_server, path)
    if path.stem == "Upscale-a-Video":
        assert client.run(prompt, timeout=180).outputs
    else:
        prompt_id = client.queue(prompt)  # raises PromptRejected, for a value that is no option any more, too
        client.post("/queue", {"delete": [prompt_id]})
        client.interrupt()


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_every_input_of_a_graph_of_0_1_0_is_known(client, path):
    """The host ignores inputs that it does not know: one under a new name would lose its value in silence."""
    info = client.object_info()
    for node in json.loads(path.read_text(encoding="utf-8")).values():
        described = info[node["class_type"]]["input"]
        known = {**described.get("required", {}), **described.get("optional", {})}
        for name in node["inputs"]:
            first, _, rest = name.partition(".")
            kind, *facts = known[first]
            if kind == "COMFY_DYNAMICCOMBO_V3" and rest:
                (chosen,) = [option for option in facts[0]["options"] if option["key"] == node["inputs"][first]]
                assert rest in {**chosen["inputs"].get("required", {}), **chosen["inputs"].get("optional", {})}
            else:
                assert not rest or kind == "COMFY_AUTOGROW_V3", name
