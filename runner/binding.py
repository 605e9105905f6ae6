"""Set a workflow's inputs from the command line, and capture its frames.

The convention, for shipped and own workflows alike:
  IN             Load Film, Load Video or Sample Clip titled "Input", else the only one whose title does not start with
                 "Reference"
  target size    Cascade Input (its `target` and the values below it), else Restore Frames
  prompt         CLIP Text Encode titled "Prompt", else the only one not titled "Negative ..."
  references     Reference Set: `images.image_N` and `videos.video_N` get new loaders
  OUT            what enters Save Film or Create Video titled "Output", else the only one, else Save or Preview Image
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass

from .errors import RunnerError
from .workflow import Workflow

CAPTURE_NODE = "CascadeVSRRunnerCapture"
PLACE_NODE = "CascadeVSRRunnerPlace"
STEADY = "VSRSteadyUpscaledVideo"
_VIEWERS = ("VSRCompareVideo",)  # for people: what they show is what a run makes anyway
_SAVERS = ("VSRSaveFilm", "SaveVideo", "SaveWEBM", "SaveAnimatedWEBP", "SaveAnimatedPNG")
_FILMS = ("VSRLoadFilm", "LoadVideo")
_SAMPLE = "VSRSampleClip"  # stands in for them
_LOADERS = {**dict.fromkeys(_FILMS, "file"), "LoadImage": "image"}
_FRAMES = {"VSRLoadFilm": 1, "GetVideoComponents": 0}  # the output with a clip's frames
_WHOLE = {"start": 0, "frames": 0, "deinterlace": False, "tonemap": False, "rate": 25.0}  # Load Film of everything
_FINAL = ("VSRSaveFilm", "CreateVideo", "SaveImage", "PreviewImage", "SaveWEBM")  # each takes `images`


@dataclass(frozen=True)
class Target:
    """The size of the result: a factor `scale`, or exact `size` as (width, height), or neither (as the graph says)."""

    scale: float | None = None
    size: tuple[int, int] | None = None


def parse_size(text: str) -> tuple[int, int]:
    """Read WxH in pixels."""
    width, _, height = text.lower().replace("×", "x").partition("x")
    if not (width.strip().isdigit() and height.strip().isdigit() and int(width) > 0 and int(height) > 0):
        raise RunnerError(f"--size: must be WIDTHxHEIGHT in pixels, such as 1920x1080; got {text!r}.")
    return int(width), int(height)


def _only(workflow: Workflow, ids: list[str], what: str, title: str) -> str:
    if len(ids) == 1:
        return ids[0]
    found = f"{len(ids)} of them ({', '.join(f'#{i} {workflow.title(i)}' for i in ids)})" if ids else "none"
    remedy = f'Title the one to use "{title}".' if ids else "Add one, or leave the option away."
    raise RunnerError(f"{what}: workflow {workflow.name} must have one such node; found {found}. {remedy}")


def _titled(workflow: Workflow, ids: list[str], title: str, but_not: str) -> list[str]:
    """Prefer nodes with exactly this title, else drop those whose title starts with `but_not`."""
    exact = [i for i in ids if workflow.title(i).lower() == title.lower()]
    return exact or [i for i in ids if not workflow.title(i).lower().startswith(but_not.lower())]


def bind_input(workflow: Workflow, file: str) -> str:
    """Connect IN, all of it, and return the loader's id: a template may stop after its first seconds."""
    ids = _titled(workflow, workflow.of_type(*_FILMS, _SAMPLE), "Input", "Reference")
    node_id = _only(workflow, ids, "IN (Load Film, Load Video)", "Input")
    node = workflow.prompt[node_id]
    if node["class_type"] == _SAMPLE:  # Load Film gives the same, and Load Video decodes nothing before
        linked = [value for each in workflow.prompt.values() for value in each["inputs"].values()]
        kind = ("VSRLoadFilm", dict(_WHOLE)) if [node_id, 1] in linked else ("LoadVideo", {})
        node["class_type"], node["inputs"] = kind
    node["inputs"]["file"] = file
    if isinstance(node["inputs"].get("first_seconds"), float | int):
        node["inputs"]["first_seconds"] = 0
    return node_id


def sized_by(workflow: Workflow) -> list[str]:
    """Give the nodes that may say how large the result is."""
    return workflow.of_type("VSRCascadeInput") or workflow.of_type("VSRRestoreFrames")


def bind_target(workflow: Workflow, target: Target) -> None:
    """Set the target size: an exact size is taken as it is, a scale rounded as the graph says."""
    if target.scale is None and target.size is None:
        return
    if target.scale is not None and not 0 < target.scale <= 64:
        raise RunnerError(f"--scale: must be above 0 and at most 64; got {target.scale:g}.")
    node_id = _only(workflow, sized_by(workflow), "--scale/--size (Cascade Input)", "Cascade Input")
    inputs = workflow.prompt[node_id]["inputs"]
    for name in [name for name in inputs if name.startswith("target.")]:
        if isinstance(inputs[name], list):
            raise RunnerError(
                f"--scale/--size: {workflow.title(node_id)}.{name} is connected to a node. Set that node."
            )
        del inputs[name]
    if target.size is not None:
        width, height = target.size
        inputs |= {"target": "exact size", "target.width": width, "target.height": height, "multiple": 1}
    else:
        inputs |= {"target": "scale", "target.scale": target.scale}


def bind_image_model(workflow: Workflow, file: str, size: tuple[int, int] | None) -> None:
    """Let the workflow use an image upscaler's file; with `size` (width, height) its frames are brought to that size.

    Steady Upscaled Video then works on frames of that size, so that they still agree with the source.
    """
    loader = _only(workflow, workflow.of_type("UpscaleModelLoader"), "--image-model (Load Upscale Model)", "Model")
    workflow.prompt[loader]["inputs"]["model_name"] = file
    if size is None:
        return
    steady = _only(
        workflow, workflow.of_type(STEADY), "--scale/--size (Steady Upscaled Video)", "Steady Upscaled Video"
    )
    inputs = workflow.prompt[steady]["inputs"]
    inputs.pop("upscale_model", None)
    frames = workflow.add("ImageUpscaleWithModel", "Upscale", upscale_model=[loader, 0], image=inputs["lr_frames"])
    fit = {"upscale_method": "lanczos", "width": size[0], "height": size[1], "crop": "disabled"}
    inputs["images"] = [workflow.add("ImageScale", "Fit", image=[frames, 0], **fit), 0]


def bind_prompt(workflow: Workflow, text: str | None) -> None:
    """Set the prompt."""
    if text is None:
        return
    ids = _titled(workflow, workflow.of_type("CLIPTextEncode"), "Prompt", "Negative")
    node_id = _only(workflow, ids, "--prompt (CLIP Text Encode)", "Prompt")
    workflow.prompt[node_id]["inputs"]["text"] = text


def load_film(workflow: Workflow, title: str, file: str) -> str:
    """Add a Load Film for all frames of a staged film and return its id; its frames are output 1."""
    return workflow.add("VSRLoadFilm", title, file=file, **_WHOLE)


def bind_references(workflow: Workflow, images: list[str], videos: list[str]) -> None:
    """Connect reference files to Reference Set, replacing what the workflow has there.

    Images are also the pictures of a Steady Upscaled Video. The first video is its original, where the workflow has
    one or no Reference Set, which then need not be there.
    """
    loaders = [[load_film(workflow, f"Reference video {i + 1}", file), 1] for i, file in enumerate(videos)]
    steady, sets = workflow.of_type(STEADY), workflow.of_type("VSRReferenceSet")
    pictures = [[workflow.add("LoadImage", f"Reference image {i + 1}", image=file), 0] for i, file in enumerate(images)]
    if (images or videos) and len(steady) == 1:
        inputs = workflow.prompt[steady[0]]["inputs"]
        if loaders and ("original" in inputs or not sets):
            inputs["original"] = loaders[0]
        _replace(inputs, "pictures.picture_", pictures)
    if not (images or videos) or (len(videos) <= len(steady) == 1 and not sets):
        return
    inputs = workflow.prompt[_only(workflow, sets, "--reference (Reference Set)", "Reference Set")]["inputs"]
    _replace(inputs, "images.image_", pictures)
    _replace(inputs, "videos.video_", loaders)


def _replace(inputs: dict, prefix: str, links: list) -> None:
    """Link a growing input anew."""
    for name in [name for name in inputs if name.startswith(prefix)]:
        del inputs[name]
    inputs |= {f"{prefix}{index}": link for index, link in enumerate(links)}


def final_frames(workflow: Workflow) -> list:
    """Return the link [id, output] that carries the result's frames."""
    for class_type in _FINAL:
        ids = _titled(workflow, workflow.of_type(class_type), "Output", "Reference")
        linked = [i for i in ids if isinstance(workflow.prompt[i]["inputs"].get("images"), list)]
        if linked:
            return workflow.prompt[_only(workflow, linked, f"OUT ({class_type})", "Output")]["inputs"]["images"]
    raise RunnerError(
        f"OUT: workflow {workflow.name} must end in Save Film, Create Video, Save Image or Preview Image; found none."
    )


def uses_sound(workflow: Workflow) -> bool:
    """Return whether the result's frames may depend on IN's sound: only then is it staged."""
    for node_id in workflow.ancestors(str(final_frames(workflow)[0])):
        reader = workflow.prompt[node_id]["class_type"]
        for link in workflow.prompt[node_id]["inputs"].values():
            if not (isinstance(link, list) and len(link) == 2 and str(link[0]) in workflow.prompt):
                continue
            kind, output = workflow.prompt[str(link[0])]["class_type"], link[1]
            # the whole video goes to a node of another kind, or the sound comes out of one of these
            if (kind in _FILMS and output == 0 and reader not in _FRAMES) or (kind, output) == (
                "GetVideoComponents",
                1,
            ):
                return True
    return False


def begin_at(workflow: Workflow, first: int) -> Workflow:
    """Return a copy whose clip begins with frame `first` of a film: noise of ours then has its place in the film."""
    copied = Workflow(deepcopy(workflow.prompt), workflow.name)
    for cascade in copied.of_type("VSRCascadeInput") if first else ():
        vae, consumers = copied.prompt[cascade]["inputs"]["target_vae"], copied.consumers(cascade)
        place = copied.add(PLACE_NODE, "Place in the film", latent=[cascade, 0], vae=vae, frame=first)
        for node_id, name in consumers:
            if copied.prompt[node_id]["inputs"][name][1] == 0:
                copied.prompt[node_id]["inputs"][name] = [place, 0]
    return copied


def check_loaders(workflow: Workflow, staged: Collection[str]) -> None:
    """Refuse a workflow whose result depends on a picture or video that nobody has named."""
    for node_id in workflow.ancestors(str(final_frames(workflow)[0])):
        node = workflow.prompt[node_id]
        if node["class_type"] == _SAMPLE:
            raise RunnerError(
                f"--reference: the result of {workflow.name} depends on {workflow.title(node_id)!r}, which belongs to "
                "the sample clip. Name pictures of what IN shows with --reference FILE."
            )
        file = node["inputs"].get(_LOADERS.get(node["class_type"], ""))
        if isinstance(file, str) and file not in staged:
            option = "--reference-video" if node["class_type"] in _FILMS else "--reference"
            raise RunnerError(
                f"{option}: the result of {workflow.name} depends on {workflow.title(node_id)!r}, for which no file "
                f"is named; got the stand-in {file!r}. Name one with {option} FILE."
            )


def bind_output(workflow: Workflow, name: str, keep_savers: bool = False, bits: int = 8) -> str:
    """Capture the result's frames under `name`, drop viewers and lossy savers, and return the capturing node's id.

    `bits` a channel: 8 or 16.
    """
    link = final_frames(workflow)
    capture = workflow.add(CAPTURE_NODE, "Write frames", images=list(link), name=name, bits=bits)
    for node_id in workflow.of_type(*_VIEWERS):
        del workflow.prompt[node_id]
    if not keep_savers:
        for class_type in _SAVERS:
            for node_id in workflow.of_type(class_type):
                if not workflow.consumers(node_id):
                    del workflow.prompt[node_id]
    return capture
