"""Upscale Film: a film of any length, VIDEO in and VIDEO out, segment by segment.

1. the source is read once to its end, and its result planned, as Load Film and Save Film do
2. the journal of the film is found beside the result, or scene cuts are looked for and the borders decided (media/)
3. every segment that is missing is decoded with its context, made (film_work.py), encoded, and kept in the journal
4. the segments are joined with the tracks of the source; the film appears whole

What is interrupted, or killed, goes on at the first segment that is missing.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import comfyui_version
from comfy_api.latest import Input, InputImpl, io

from ..media.journal import Journal
from ..media.reader import probe
from ..media.render import finish, key
from ..media.segments import CONTEXT
from ..models.layout.sizes import ClipSize
from ..models.pixels.color import METHODS
from ..models.steady import SOURCES
from .beginning import first_seconds_input
from .conditioning import ReferencesType, noise_level_input
from .film_parts import NO_MATCH, TITLE
from .film_work import Chosen, Work, described
from .frames import filter_input, multiple_input, target_input
from .host import services
from .host.film import (
    Film,
    check_saving,
    film_of,
    graph_texts,
    in_graph,
    joints,
    place,
    preview,
    said_by,
    saving_inputs,
)
from .host.progress import Progress, show_text
from .host.room import clip_words
from .looks import LOOKS, STANDARD
from .motion import FlowModelType
from .samples import sample_film

_asked: dict[str | None, tuple] = {}  # what each node was asked for last: its id and values
_made: dict[tuple, Path] = {}  # what came of it
_lost: Counter = Counter()  # how often that was gone when it was asked for again


class UpscaleFilm(io.ComfyNode):
    """Upscales a whole film."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""

        def dial(name: str, tooltip: str) -> io.Float.Input:
            return io.Float.Input(name, default=1.0, min=0.0, max=1.0, step=0.05, advanced=True, tooltip=tooltip)

        def number(name: str, default: int, most: int, tooltip: str, **more) -> io.Int.Input:
            return io.Int.Input(name, default=default, min=0, max=most, tooltip=tooltip, **more)

        return io.Schema(
            node_id="VSRUpscaleFilm",
            display_name=TITLE,
            category=services.CATEGORY,
            description=(
                "Upscales a film of any length, scene by scene and segment by segment: memory does not grow, and after "
                "an interruption, a crash or a power cut Run goes on where it stopped. Writes the film as Save Film "
                "does. Link a model with its VAE, or an upscale model."
            ),
            search_aliases=[
                "long video",
                "upscale video",
                "resume",
                "batch video",
                "video to video",
                "whole film",
                "cascade vsr",
            ],
            inputs=[
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="The film, from Load Video: nothing of it is decoded before. Empty: the sample clip.",
                ),
                io.Model.Input("model", optional=True, tooltip="The restorer or video model, with all its patches."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of the model; the built-in one alone restores without sampling.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="Prompt; leave unlinked for none."),
                io.Conditioning.Input("negative", optional=True, tooltip="Negative prompt; used when cfg is not 1."),
                io.Guider.Input("guider", optional=True, tooltip="Instead of model, prompts and cfg: a guider."),
                io.Noise.Input(
                    "noise", optional=True, tooltip="Noise for the model; with Seeded Noise no joint shows in it."
                ),
                io.Sampler.Input("sampler", optional=True, tooltip="Sampler for the model."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Sigmas for the model."),
                ReferencesType.Input(
                    "references", optional=True, tooltip="From Reference Set; every segment sees all of them."
                ),
                io.UpscaleModel.Input(
                    "upscale_model",
                    optional=True,
                    tooltip="Instead of a model: any image upscaler, whose frames are then made steady.",
                ),
                FlowModelType.Input(
                    "flow_model", optional=True, tooltip="Motion for an upscale_model. Empty: the built-in estimator."
                ),
                target_input(),
                filter_input(),
                multiple_input(),
                io.Float.Input(
                    "cfg", default=1.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance by the prompts; 1 is none."
                ),
                noise_level_input(),
                io.Combo.Input(
                    "colour",
                    options=[NO_MATCH, *METHODS],
                    default=NO_MATCH,
                    tooltip="Gives every frame the colours of its source, by a method of Colour Match.",
                ),
                number("first", 0, 10**7, "Tries the beginning only: so many frames; 0 is the whole film."),
                number(
                    "segment",
                    0,
                    10**4,
                    "Most frames of a segment; 0: what the memory takes, 32 to 480.",
                    advanced=True,
                ),
                number(
                    "context",
                    CONTEXT,
                    512,
                    "Frames made before a segment, half as many after it, and thrown away: no joint shows.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "deinterlace",
                    default=False,
                    advanced=True,
                    tooltip="Makes one whole frame of every two fields (bwdif).",
                ),
                io.Boolean.Input(
                    "tonemap",
                    default=False,
                    advanced=True,
                    tooltip="Makes BT.709 of an HDR film, white at 203 nits.",
                ),
                dial("lr_weight", "Influence of the low-resolution frames on the decoder, as in Temporal Decode."),
                io.Int.Input(
                    "chunk", default=16, min=4, max=1024, step=4, advanced=True, tooltip="Frames decoded together."
                ),
                number("tile", 0, 8192, "Side of a decoded tile in px; 0: whole frames if they fit.", advanced=True),
                dial("steadiness", "With an upscale_model: as in Steady Upscaled Video."),
                dial("fidelity", "With an upscale_model: as in Steady Upscaled Video."),
                dial("sharpness", "With an upscale_model: as in Steady Upscaled Video."),
                io.Combo.Input(
                    "source",
                    options=list(SOURCES),
                    default=SOURCES[0],
                    advanced=True,
                    tooltip="With an upscale_model: as in Steady Upscaled Video; automatic decides for every scene.",
                ),
                *saving_inputs("video/film"),
                first_seconds_input(),
                io.Combo.Input(
                    "look",
                    options=list(LOOKS),
                    default=STANDARD,
                    optional=True,
                    tooltip="draft: half of the steps, of one step none; frames of an upscale_model are not made "
                    "steady. standard: as set. best: the mean of the film and of its mirror image, which are both "
                    "made: less is invented, at twice the time.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The written film.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None, format: str | None, codec: str | None, target: dict | None):
        """Try name and codec before the work; the host gives `target` whether asked for or not."""
        return check_saving(TITLE, filename_prefix, format, codec)

    @classmethod
    def fingerprint_inputs(cls, **values):
        """Notice that the film of the run before is gone."""
        node = cls.hidden.unique_id
        asked = _asked[node] = node, repr(sorted(values.items()))
        if asked in _made and not _made[asked].exists():
            del _made[asked]
            _lost[asked] += 1
        return _lost[asked]

    @classmethod
    def execute(cls, video: Input.Video | None = None, *, target: dict, **settings):
        """Plan the film, make the segments that are missing, join them."""
        node, prompt = cls.hidden and cls.hidden.unique_id, cls.hidden and cls.hidden.prompt
        chosen = Chosen(target=target, **settings)
        chosen.check()
        with said_by(TITLE):
            work = Work.of(sample_film() if video is None else film_of(video), chosen)
            settings = {**chosen.deciding(), **described(prompt, node), "ComfyUI": comfyui_version.__version__}
            before = ClipSize(work.clip.frames, work.clip.height, work.clip.width)
            show_text(node, clip_words(before, ClipSize(work.clip.frames, *work.size)))
            work.check_room()
            journal, line = Journal.begin(work.out, key(work.clip, settings), work.borders)
            nothing = ["no video is linked: this is the sample clip"] if video is None else []
            notes = [*nothing, *work.clip.notes(), *map(in_graph, work.how.notes), *([in_graph(line)] if line else [])]
            for note in notes:
                logging.getLogger(__name__).warning("%s: %s", TITLE, note)
            count = work.make(journal, node)
            out, subfolder = place(chosen.filename_prefix, work.out.suffix, *work.size[::-1])
            finish(journal, out, work.clip, work.how, chosen.keep_tracks, graph_texts(cls.hidden), Progress().beat)
        joints[out] = tuple(segment.start for segment in journal.segments[1:])
        if node in _asked:
            _made[_asked[node]] = out
        result = InputImpl.VideoFromFile(str(out)) if work.how.kind == "film" else Film(probe(out))
        lines = [out.name, f"{work.clip.frames:,} frames; {count} of {len(journal.segments)} segments made now", *notes]
        return io.NodeOutput(result, ui={**preview(out, subfolder, work.how, work.size, work.clip), "text": lines})
