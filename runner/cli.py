"""The command line of `run.py` (standard library only: it is read before the environment exists)."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

from ..media.errors import MediaError
from ..media.segments import CONTEXT
from . import environment
from .errors import RunnerError
from .paths import cache_root

_DESCRIPTION = """Video super-resolution in ComfyUI, headless or in the editor.

The first command sets up a Python environment and a ComfyUI in the cache folder (about 7 GB, a few minutes);
later commands start in seconds. Your own ComfyUI is used instead if COMFYUI_PATH names it, or if this folder is
in its custom_nodes/."""

_UPSCALE_EPILOG = """examples:
  run.py upscale old.mp4 new.mp4 --scale 4
  run.py upscale old.mp4 frames/ --size 1920x1080
  run.py upscale clip.mkv out.mp4 --workflow my_graph.json --set "Colour Match.strength=0.5"
  run.py upscale --scale 2 -- -name-with-a-dash.mp4 out.mp4

long films are made by segments (docs/film.md): memory does not grow, and the same command goes on after a break
  run.py upscale film.mkv large.mkv --first 10s      try the beginning

what is kept of IN, where OUT holds it (the log says what it does not hold): the time of every frame, the shape of its
pixels, colours and depth (10 bits, HDR), transparency, and in step with the picture sound, subtitles and chapters

how the inputs of a workflow are set (API-format json; for an editor file the file of that name in api/ is used):
  IN             the Load Video node titled "Input", else the only one not titled "Reference ..."
  --scale/--size the Cascade Input node, else Restore Frames
  --prompt       the CLIP Text Encode node titled "Prompt"
  --reference    images of the Reference Set node, and pictures of Steady Upscaled Video
  --reference-video  videos of the Reference Set node; the first is the original of Steady Upscaled Video
  OUT            the frames that enter Create Video (titled "Output" if there are several)"""

_PARTS_EPILOG = """one film on several machines that share a folder (more: docs/film.md):
  run.py plan-film IN OUT --scale 4               once: the borders of the segments
  run.py upscale IN OUT --scale 4 --part 3/10     on every machine, in any order, each another part
  run.py join OUT                                 at the end; it says which segments are missing"""

_TRAIN_HELP = """usage: run.py train [NAME] ...

Train the built-in model or an adapter, or run the ablations (options: run.py train NAME --help):
  builtin    the built-in model; also without a name: `run.py train --photos FOLDER ...`
  adapter    a UniMMVSR adapter for a base model of the Wan family
  ablations  compare settings of the method; writes a page with tables and pictures

example:
  run.py train adapter --base Wan2.1-T2V-1.3B-Diffusers --videos my_clips"""


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    top = argparse.ArgumentParser(
        prog="run.py", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    demo = add("demo", "upscale a sample clip in a real ComfyUI and measure it; results in output/")
    demo.add_argument("--output", default="output", metavar="DIR", help="where the results go (default: output)")
    demo.add_argument("--port", type=int, help="port of the temporary ComfyUI (default: any free one)")

    # No argument begins with this prefix: pytest and the training programs read their own options, --help included
    own = {"prefix_chars": "\0", "add_help": False}
    test = commands.add_parser("test", help="run all tests, or those that the pytest arguments select", **own)
    test.add_argument("pytest", nargs=argparse.REMAINDER)

    add("lint", "check the code with ruff: rules and formatting")

    serve = add("serve", "open the ComfyUI editor with the pack loaded")
    serve.add_argument("--port", type=int, help="port (default: 8188, or any free one)")
    serve.add_argument("--no-browser", action="store_true", help="print the address, do not open a browser")
    serve.add_argument("--cpu", action="store_true", help="do not use the GPU")

    _add_upscale(
        add("upscale", "upscale a video with a shipped workflow or your own, without the editor", _UPSCALE_EPILOG)
    )

    text = "look for the scene cuts of a film and decide the borders of its segments, for upscale --part"
    _add_upscale(add("plan-film", text, _PARTS_EPILOG))
    join = add("join", "make a film of the segments that upscale --part has rendered", _PARTS_EPILOG)
    join.add_argument("output", metavar="OUT", help="the very OUT of upscale --part")
    join.add_argument("--input", metavar="IN", help="where IN is now, if it was moved")

    text = "make a film steady that was upscaled frame by frame, by any program, with the film it was made from"
    _add_steady(add("steady", text))

    bench = add("bench", "measure speed, memory, quality and start-up")
    bench.add_argument("name", nargs="?", help="a benchmark (default: list them and run the short ones)")
    bench.add_argument("--frames", type=int, help="number of frames (default: depends on the benchmark)")
    bench.add_argument("--size", metavar="WxH", help="output size in pixels (default: depends on the benchmark)")
    bench.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run (default: auto)")

    bench.add_argument(
        "--set",
        action="append",
        default=[],
        metavar='"TITLE.INPUT=VALUE"',
        dest="settings",
        help="set any input of the measured workflow (may be repeated)",
    )

    quality = bench.add_argument_group("bench quality, bench references, bench steady")
    quality.add_argument("--clips", metavar="DIR", help="folder of clips in full resolution, the truth")
    quality.add_argument("--lr", metavar="DIR", help="folder of their low-resolution files, NAME_MODE.mp4")
    quality.add_argument("--modes", nargs="+", default=["bicubic", "real"], help="every MODE (default: bicubic real)")
    quality.add_argument("--only", nargs="+", metavar="NAME", help="these clips only; bench beside: parts")
    region = {
        "metavar": "NAME=L,T,W,H",
        "help": "bench references: left, top, width, height (px of the truth) of what the identity images show",
    }
    quality.add_argument("--region", nargs="+", default=[], dest="regions", **region)
    quality.add_argument("--exclude", nargs="+", default=[], metavar="NAME", help="leave these clips out")
    models = {
        "metavar": "FILE",
        "help": "bench quality, bench steady: weights of image upscalers, of any kind that ComfyUI loads",
    }
    quality.add_argument("--image-model", nargs="+", default=[], dest="image_models", **models)
    text = "bench quality: what run.py upscale is to take (default: Upscale-a-Video)"
    quality.add_argument("--workflow", default="Upscale-a-Video", help=text)
    bench.add_argument("--photos", metavar="DIR", help="bench neighbours: photographs that nothing was trained on")
    bench.add_argument("--old", metavar="DIR", help="bench beside: a checkout of another version")
    text = "train the built-in model or an adapter, or run the ablations"
    train = commands.add_parser("train", help=text, **own)
    train.add_argument("arguments", nargs=argparse.REMAINDER)

    convert = add("convert", "write published weights of Upscale-A-Video or MGLD-VSR as one safetensors file")
    convert.add_argument(
        "input", metavar="IN", help="the released folder, or its UNet file (for MGLD-VSR mgldvsr_unet.ckpt)"
    )
    convert.add_argument("output", metavar="OUT.safetensors", help="the file to write")
    convert.add_argument("--half", action="store_true", help="store all but the autoencoders in half precision")

    setup = add("setup", "set up the environment and ComfyUI, and print where they are")
    setup.add_argument("--tests", action="store_true", help="include the packages that tests need")
    setup.add_argument("--ray", action="store_true", help="include Ray, for upscale --ray")
    return top


def _add_upscale(upscale: argparse.ArgumentParser) -> None:
    upscale.add_argument(
        "input", metavar="IN", help="a video, a folder of images, or one image (animated GIF, WebP, PNG: a video)"
    )
    upscale.add_argument(
        "output",
        metavar="OUT",
        help="a video (.mp4 .mov .mkv .webm), an animated or single picture (.png .webp), or a folder for PNG frames",
    )
    upscale.add_argument(
        "--workflow",
        default="Upscale-a-Video",
        metavar="NAME_OR_FILE",
        help="a name from workflows/ or a json file (default: Upscale-a-Video, with references the one made for them)",
    )
    upscale.add_argument(
        "--reference",
        nargs="+",
        action="extend",
        default=[],
        metavar="IMAGE",
        help="reference images for a workflow with a Reference Set or Steady Upscaled Video",
    )
    upscale.add_argument(
        "--reference-video", action="append", default=[], metavar="VIDEO", help="reference video (may be repeated)"
    )
    upscale.add_argument("--prompt", help="text for a workflow with a text encoder")
    size = upscale.add_mutually_exclusive_group()
    size.add_argument("--scale", type=float, metavar="N", help="enlarge both sides N times, to even sides")
    size.add_argument("--size", metavar="WxH", help="exact size of the result in pixels, odd sides too")
    upscale.add_argument(
        "--set",
        action="append",
        default=[],
        metavar='"TITLE.INPUT=VALUE"',
        dest="settings",
        help="set any input of the workflow (may be repeated)",
    )
    upscale.add_argument(
        "--image-model",
        metavar="FILE",
        help="upscale with an image upscaler's file (.safetensors, .pth), as ComfyUI loads it, frame by frame, and "
        "make the frames agree with each other and with IN; without --scale at the model's own size",
    )
    _add_result(upscale)
    parts = upscale.add_argument_group("long films")
    parts.add_argument("--first", metavar="N", help="try the beginning only: so many frames, or seconds, such as 10s")
    parts.add_argument("--fresh", action="store_true", help="start anew; else a run that was broken goes on")
    text = "frames a segment (default: what the memory takes, 32 to 480); 0: the whole film at once"
    parts.add_argument("--segment", type=int, metavar="N", help=text)
    text = f"frames that are rendered before a segment, and half as many after it, and thrown away (default: {CONTEXT})"
    parts.add_argument("--context", type=int, default=CONTEXT, metavar="N", help=text)
    parts.add_argument("--part", metavar="I/N", help="render part I of N and leave it for run.py join")
    text = "render on a Ray cluster, one ComfyUI a GPU; local: on this machine, local:2: by two workers"
    parts.add_argument("--ray", metavar="ADDRESS", help=text)


def _add_steady(steady: argparse.ArgumentParser) -> None:
    steady.add_argument("input", metavar="UPSCALED", help="a film that any program has upscaled, 1 to 8 times")
    steady.add_argument("output", metavar="OUT", help="where it goes, made steady; as of upscale")
    steady.add_argument(
        "--source", required=True, metavar="IN", help="the film before it was upscaled, frame for frame"
    )
    steady.add_argument(
        "--reference-video",
        metavar="VIDEO",
        help="where IN is an edit: the film before the edit; what the edit left alone gets its detail back",
    )
    steady.add_argument(
        "--reference",
        nargs="+",
        action="extend",
        default=[],
        metavar="IMAGE",
        help="sharp photographs of who or what IN shows, of any size: their detail comes in where they fit",
    )
    for name in ("steadiness", "fidelity", "sharpness"):
        steady.add_argument(f"--{name}", type=float, default=1.0, metavar="0..1", help="as in the node (default: 1)")
    steady.add_argument(
        "--quality-of-source",
        choices=("automatic", "clean", "compressed"),
        default="automatic",
        help="whether IN is right to the pixel, or noisy, blurred or from a small file (default: automatic)",
    )
    _add_result(steady)
    steady.set_defaults(segment=0, context=0, first=None, part=None, fresh=False, ray=None)  # at once


def _add_result(parser: argparse.ArgumentParser) -> None:
    """Add what upscale and steady share: how IN is read, what OUT is, where it runs."""
    parser.add_argument("--rate", metavar="FPS", help="frames per second of a folder of images (default: 25)")
    parser.add_argument(
        "--deinterlace", action="store_true", help="make whole frames of interlaced ones first (bwdif; same count)"
    )
    parser.add_argument("--tonemap", action="store_true", help="turn HDR into BT.709 with white at 203 nits")
    parser.add_argument(
        "--keep-tracks",
        choices=("all", "first", "none"),
        default="all",
        help="what follows into a video: all tracks that OUT's container takes, the first sound only, or none",
    )
    parser.add_argument(
        "--codec",
        choices=("auto", "h264", "hevc", "av1", "vp9", "prores", "ffv1"),
        default="auto",
        help="of a video; auto: H.264, HEVC of 10 bits for deep or HDR sources, in .webm VP9 (deep: AV1), for "
        "transparency VP9 or ProRes",
    )
    parser.add_argument("--crf", type=float, default=12.0, help="quality of a video, lower is better (default: 12)")
    parser.add_argument(
        "--lossless", action="store_true", help="write bit-exact RGB: H.264; deep or transparent in .mkv FFV1"
    )
    parser.add_argument("--port", type=int, help="port of the temporary ComfyUI (default: any free one)")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    parser.add_argument("--json", metavar="FILE", help="also write seconds, peak memory and network calls as json")


def _stop(*_) -> None:
    raise KeyboardInterrupt


_MODULES = {"plan-film": "upscale"}
# Commands that need the packages for tests; bench quality needs OpenCV's optical flow.
_EXTRAS = {"test": ("test",), "lint": ("test",), "bench": ("test",)}


def _extras(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the layers of the environment that a command needs besides the base."""
    chosen = [name for name, option in (("test", "tests"), ("ray", "ray")) if getattr(options, option, None)]
    return (*_EXTRAS.get(options.command, ()), *chosen)


def main(arguments: list[str]) -> int:
    """Run a command and return the exit code; everything but --help runs inside the environment."""
    if arguments[:1] == ["train"] and arguments[1:2] in (["-h"], ["--help"]):
        print(_TRAIN_HELP)
        return 0
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be text
        stream.reconfigure(errors="backslashreplace")
    try:
        host = environment.host_inside()
        if host is None:
            ready = environment.prepare(_extras(options))
            print(
                f"ComfyUI {ready.host.version}: {ready.host.path} ({ready.host.origin})\n"
                f"Python: {ready.python} ({ready.origin})",
                flush=True,
            )
            return 0 if options.command == "setup" else environment.enter(ready, arguments)
        signal.signal(signal.SIGTERM, _stop)
        return importlib.import_module(f".{_MODULES.get(options.command, options.command)}", __package__).main(
            options, host
        )
    except (RunnerError, MediaError) as error:
        print(f"run.py {options.command}: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        return 1
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        print(
            f"run.py {options.command}: no space left on the disk ({error.filename or cache_root()}).", file=sys.stderr
        )
        return 1
