#!/usr/bin/env python3
"""Render the thumbnails of the shipped workflows and the README's picture: `python3 tools/make_thumbnails.py`.

Names of workflows after it render these only. Every picture is what the workflow itself makes of the sample clip in a
real ComfyUI; run it again after training.
"""

import io
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from runner.pack import register  # noqa: E402

register()

from cascadevsr.tools.editor import host_here, shipped  # noqa: E402

HOST = host_here()  # first of all: what follows needs the environment's packages

import numpy as np  # noqa: E402
import torch  # noqa: E402
from cascadevsr.media.writer import write_video  # noqa: E402
from cascadevsr.models.motion.blockflow import BlockFlow  # noqa: E402
from cascadevsr.models.motion.estimation import estimate_pairs  # noqa: E402
from cascadevsr.models.motion.flow import flow_picture  # noqa: E402
from cascadevsr.runner.binding import STEADY, Target, bind_input, bind_references, bind_target  # noqa: E402
from cascadevsr.runner.demo import comparison  # noqa: E402
from cascadevsr.runner.job import open_job  # noqa: E402
from cascadevsr.runner.paths import ROOT  # noqa: E402
from cascadevsr.runner.sample import SCALE, Sample, make_sample  # noqa: E402
from cascadevsr.runner.workflow import Workflow  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

SIDE = 512  # px of a thumbnail; the template browser shows squares
THUMBNAIL_BYTES, README_BYTES = 80_000, 200_000
PHOTOS = ROOT / "assets" / "photos"  # assets/README.md names their authors
SUBJECTS = {  # the starter shows the sample of `run.py demo`
    "Upscale-a-Video-Fast": "coins",
    "Upscale-a-Film": "rocket",
    "Upscale-with-any-Model": "coffee",
    "Upscale-with-Identity-Images": "astronaut",
    "Upscale-an-Edited-Video": "coins",
    "Restore-with-MGLD-VSR": "gravel",
    "Upscale-with-SeedVR2": "hubble_deep_field",
    "Restore-with-Upscale-A-Video": "moon",
    "Cascade-from-a-Base-Model": "retina",
    "Cascade-to-1080p": "hubble_deep_field",
    "Cascade-to-4K": "brick",
}


def main() -> int:
    """Run every shipped workflow on the sample clip and store the pictures."""
    for name, file in shipped().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        sample = make_sample(photo=PHOTOS / f"{SUBJECTS[name]}.jpg") if name in SUBJECTS else make_sample()
        if (
            name.startswith("Restore-with") or "SeedVR2" in name
        ):  # these weights are not ours to ship: show what needs none
            picture = split(sample, motion(sample, "MGLD" in name), "its motion")
            save_jpeg(file.with_suffix(".jpg"), picture, THUMBNAIL_BYTES)
            continue
        frames = run(name, sample)
        cascade = name.startswith(("Cascade", "Upscale-an-Edited"))
        what = "bicubic, made steady" if "any-Model" in name else "result"
        picture = inset(sample, frames, name) if cascade else split(sample, frames, what)
        save_jpeg(file.with_suffix(".jpg"), picture, THUMBNAIL_BYTES)
        if name == "Upscale-a-Video":
            save_jpeg(ROOT / "assets" / "readme.jpg", comparison(sample, frames), README_BYTES)
    return 0


def run(name: str, sample: Sample) -> np.ndarray:
    """Return the frames (n, h, w, 3) that a workflow makes of the sample, cut to the truth's size."""
    workflow = Workflow.load(name)
    with open_job(HOST) as job:
        write_video(job.input_dir / "input.mov", sample.low, Fraction(24), codec="png")
        bind_input(workflow, "input.mov")
        if "Edited" in name:  # the sample's truth is the unedited video
            write_video(job.input_dir / "source.mov", sample.truth, Fraction(24), codec="png")
            bind_references(workflow, [], ["source.mov"])
        height, width = sample.truth.shape[1:3]
        if loaders := workflow.of_type("UpscaleModelLoader"):  # no upscale model is ours to ship: bicubic
            (steady,) = (workflow.prompt[each]["inputs"] for each in workflow.of_type(STEADY))
            del steady["upscale_model"], workflow.prompt[loaders[0]]
            fit = {"upscale_method": "bicubic", "width": width, "height": height, "crop": "disabled"}
            steady["images"] = [workflow.add("ImageScale", "Bicubic", image=steady["lr_frames"], **fit), 0]
        elif films := workflow.of_type("VSRUpscaleFilm"):
            workflow.prompt[films[0]]["inputs"]["target.scale"] = SCALE
            parts = workflow.add("GetVideoComponents", "Frames", video=[films[0], 0])
            workflow.add("PreviewImage", "Output", images=[parts, 0])
        else:
            bind_target(workflow, Target(scale=SCALE))
        return np.array(job.run(workflow).frames[:, :height, :width])


def motion(sample: Sample, backward: bool) -> np.ndarray:
    """Return the frames (n, h, w, 3) under the flow pictures that Estimate Motion makes of the sample."""
    motion = estimate_pairs(torch.from_numpy(np.array(sample.low)).float() / 255, BlockFlow())
    flow = flow_picture(motion.backward if backward else motion.forward).clamp(0, 1) * 255
    seen = torch.from_numpy(np.array(sample.low[: len(flow)]))
    return (flow * 0.5 + seen * 0.5).round().byte().numpy()  # over the picture: of a calm pan it is one colour


def square(frame: np.ndarray) -> Image.Image:
    """Cut the middle square out of a frame and show its pixels as they are."""
    height, width = frame.shape[:2]
    side, left = min(height, width), (width - min(height, width)) // 2
    return Image.fromarray(frame[:side, left : left + side]).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def split(sample: Sample, frames: np.ndarray, what: str = "result") -> Image.Image:
    """Show the middle frame, the source on the left half and `what` came of it on the right one."""
    middle = len(frames) // 2
    picture, source = square(frames[middle]), square(sample.low[middle])
    picture.paste(source.crop((0, 0, SIDE // 2, SIDE)), (0, 0))
    draw = ImageDraw.Draw(picture)
    draw.line((SIDE // 2, 0, SIDE // 2, SIDE), "white", 3)
    label(draw, (10, SIDE - 34), "source")
    label(draw, (SIDE - 10, SIDE - 34), what, right=True)
    return picture


def inset(sample: Sample, frames: np.ndarray, name: str) -> Image.Image:
    """Show the last frame with the base clip's own frame in a corner, at the scale of the result's pixels."""
    picture = square(frames[-1])
    factor = SIDE / min(frames.shape[1:3])
    height, width = sample.low.shape[1:3]
    size = (round(width * factor), round(height * factor))
    base = Image.fromarray(sample.low[-1]).resize(size, Image.Resampling.NEAREST)
    left, top = 14, SIDE - size[1] - 14
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 3, top - 3, left + size[0] + 2, top + size[1] + 2), "white")
    picture.paste(base, (left, top))
    source, result = ("edited clip", "with the unedited video") if "Edited" in name else ("base model", "cascade")
    label(draw, (left, top - 36), source)
    label(draw, (SIDE - 10, SIDE - 34), result, right=True)
    return picture


def label(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, right: bool = False) -> None:
    """Write white on black, so that it reads on any picture."""
    font = ImageFont.load_default(20)
    width = draw.textlength(text, font)
    left = place[0] - width if right else place[0]
    draw.rectangle((left - 6, place[1] - 2, left + width + 6, place[1] + 26), "black")
    draw.text((left, place[1]), text, "white", font)


def save_jpeg(path: Path, picture: Image.Image, limit: int) -> None:
    """Save with the best quality that stays within `limit` bytes."""
    for quality in range(92, 30, -4):
        data = io.BytesIO()
        picture.convert("RGB").save(data, "JPEG", quality=quality, optimize=True, progressive=True)
        if data.tell() <= limit:
            path.write_bytes(data.getvalue())
            sys.stdout.write(f"{path.relative_to(ROOT)}: {data.tell()} bytes, quality {quality}\n")
            return
    raise ValueError(f"{path.name}: does not fit into {limit} bytes")


if __name__ == "__main__":
    sys.exit(main())
