"""Blueprints: the middle of a shipped workflow as one node, derived from its editor file."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).absolute().parent.parent / "subgraphs"
NAMES = FOLDER.parent / "locales" / "en" / "nodeDefs.json"
CATEGORY = "Video/Cascade VSR"
_OUTSIDE = {
    "VSRLoadFilm", "VSRSampleClip", "VSRSaveFilm", "VAELoader", "VAEEncode", "ImageFromBatch", "MarkdownNote",
    "VSRPlan",
}  # fmt: skip
_INPUT, _OUTPUT = -10, -20  # ids of a subgraph's two ends, as the editor writes them


@dataclass(frozen=True)
class Blueprint:
    """Say which workflow becomes a node, under which name, and what else of it is seen from outside."""

    workflow: str
    name: str
    description: str
    outside: frozenset[str] = frozenset()  # types left out beside sources, results and notes
    dropped: frozenset[tuple[str, str]] = frozenset()  # (type, input) whose link is left out
    inputs: tuple[tuple[str, str], ...] = ()  # (type, input) without a link that become sockets
    shared: tuple[tuple[str, str, str, str], ...] = ()  # (type, input, of such a socket's type, its input)
    outputs: tuple[tuple[str, int], ...] = ()  # (type, output) without a link that become results
    widgets: tuple[tuple[str, str], ...] = ()  # (type, widget) shown on the node


_CASCADE = {
    "outside": frozenset({"VSRLoadVideoRestorer"}),
    "dropped": frozenset({("VSRTemporalDecode", "lr_frames")}),  # only a restorer's VAE can use them
    "inputs": (("VSRConditioning", "positive"), ("VSRConditioning", "negative")),
    "widgets": (("VSRCascadeInput", "target.short_side"), ("VSRRefineSigmas", "start_sigma"),
                ("VSRRefineSigmas", "steps"), ("VSRLowFrequencyTie", "strength"), ("VSRSeededNoise", "seed")),
}  # fmt: skip
_REFERENCES = (("VSRCascadeInput", "target.scale"), ("VSRRefineSigmas", "steps"), ("VSRReferenceGuider", "s_ref"),
               ("VSRReferenceSet", "long_edge"), ("VSRSeededNoise", "seed"))  # fmt: skip
_MODEL = frozenset({
    "VSRLoadVideoRestorer", "VSRReferenceSet", "VSRSpatialTiles", "VSRTemporalWindows", "VSRSeededNoise",
    "VSRRestorerSampler", "VSRRefineSigmas",
})  # fmt: skip
_OF_A_MODEL = ("model", "vae", "noise", "sampler", "sigmas", "references")
BLUEPRINTS = (
    Blueprint(
        "Cascade-to-1080p", "Cascade to 1080p",
        "A base video model's LATENT to 1080p with any native video model, without training.", **_CASCADE,
    ),
    Blueprint(
        "Cascade-to-4K", "Cascade to 4K",
        "A base video model's LATENT to 4K with any native video model, in tiles and windows.", **_CASCADE,
    ),
    Blueprint(
        "Upscale-with-Identity-Images", "Upscale with identity images",
        "A small clip, made large with detail from pictures of what it shows.", widgets=_REFERENCES,
        inputs=(("VSRReferenceSet", "images.image_2"),),
        shared=(("VSRSteadyUpscaledVideo", "pictures.picture_2", "VSRReferenceSet", "images.image_2"),),
    ),
    Blueprint(
        "Upscale-an-Edited-Video", "Upscale an edited video",
        "A small, edited clip, made large with detail from the unedited video.", widgets=_REFERENCES,
    ),
    Blueprint(
        "Upscale-a-Film", "Upscale a video (Cascade VSR)",
        "A video of any length in (none: a sample), the large one out, by the built-in model, in bounded memory; what "
        "was interrupted goes on. Steps: 1 is faithful, 4 to 8 are sharper and invent texture.",
        outside=frozenset({"VSRReferenceSet"}), outputs=(("VSRUpscaleFilm", 0),),
        widgets=(("VSRUpscaleFilm", "target.scale"), ("VSRUpscaleFilm", "first_seconds"), ("VSRUpscaleFilm", "look"),
                 ("VSRRefineSigmas", "steps"), ("VSRUpscaleFilm", "filename_prefix")),
    ),
    Blueprint(
        "Upscale-a-Film", "Upscale a video with any model (Cascade VSR)",
        "A video of any length in, the large one out, by the upscale model that you link (ESRGAN, SPAN ...), made "
        "steady; what was interrupted goes on.",
        outside=_MODEL, dropped=frozenset(("VSRUpscaleFilm", name) for name in _OF_A_MODEL),
        inputs=(("VSRUpscaleFilm", "upscale_model"),), outputs=(("VSRUpscaleFilm", 0),),
        widgets=(("VSRUpscaleFilm", "target.scale"), ("VSRUpscaleFilm", "first_seconds"),
                 ("VSRUpscaleFilm", "look"), ("VSRUpscaleFilm", "steadiness"), ("VSRUpscaleFilm", "fidelity"),
                 ("VSRUpscaleFilm", "sharpness"), ("VSRUpscaleFilm", "filename_prefix")),
    ),
)  # fmt: skip


def derive(blueprint: Blueprint, graph: dict) -> dict:
    """Make the blueprint of an editor file: one outer node, and the definition of what is inside."""
    graph = _renumbered(graph, 100 * (1 + BLUEPRINTS.index(blueprint)))
    inside = [n for n in graph["nodes"] if n["type"] not in _OUTSIDE | blueprint.outside]
    ids, by_type = {node["id"] for node in inside}, {node["type"]: node for node in inside}
    nodes = {node["id"]: json.loads(json.dumps(node)) for node in inside}
    links, sockets, results = _links(blueprint, graph, nodes, ids)
    for kind, name in blueprint.inputs:
        target = by_type[kind]["id"]
        slot = next(i for i, each in enumerate(nodes[target]["inputs"]) if each["name"] == name)
        number = max(link["id"] for link in links) + 1
        links.append(_link(number, _INPUT, len(sockets), target, slot, nodes[target]["inputs"][slot]["type"]))
        socket = {"name": name.rpartition(".")[2], **_shown(kind, name)}
        sockets[kind, name] = {**socket, "type": links[-1]["type"], "linkIds": [number]}
        nodes[target]["inputs"][slot]["link"] = number
    for kind, name, *first in blueprint.shared:
        target, number = by_type[kind]["id"], max(link["id"] for link in links) + 1
        slot = next(i for i, each in enumerate(nodes[target]["inputs"]) if each["name"] == name)
        place = list(sockets).index(tuple(first))
        links.append(_link(number, _INPUT, place, target, slot, nodes[target]["inputs"][slot]["type"]))
        sockets[tuple(first)]["linkIds"].append(number)
        nodes[target]["inputs"][slot]["link"] = number
    for kind, slot in blueprint.outputs:
        origin, number = by_type[kind]["id"], max(link["id"] for link in links) + 1
        output = nodes[origin]["outputs"][slot]
        links.append(_link(number, origin, slot, _OUTPUT, len(results), output["type"]))
        results[origin, slot] = {"name": output["type"], "type": output["type"], "linkIds": [number]}
    _tidy(nodes.values(), links)
    for kind, name in blueprint.widgets:  # the outer node takes the names of its dials from here
        for each in nodes[by_type[kind]["id"]]["inputs"]:
            each |= _shown(kind, name) if each["name"] == name else {}
    widgets = [[str(by_type[kind]["id"]), name] for kind, name in blueprint.widgets]
    return _file(blueprint, list(nodes.values()), links, list(sockets.values()), list(results.values()), widgets)


def _renumbered(graph: dict, shift: int) -> dict:
    """Copy a graph with other ids: the editor was seen to mix up widgets of inner nodes with the same id."""
    nodes = [{**node, "id": node["id"] + shift} for node in graph["nodes"]]
    links = [[n, origin + shift, output, target + shift, *rest] for n, origin, output, target, *rest in graph["links"]]
    return {"nodes": nodes, "links": links}


def _links(blueprint: Blueprint, graph: dict, nodes: dict, ids: set[int]):
    """Sort a graph's links into (inner links, sockets by origin, results by origin)."""
    links, sockets, results, names = [], {}, {}, set()
    for number, origin, output, target, slot, kind in graph["links"]:
        if target in ids:
            socket = nodes[target]["inputs"][slot]
            if (nodes[target]["type"], socket["name"]) in blueprint.dropped:
                socket["link"] = None
            elif origin in ids:
                links.append(_link(number, origin, output, target, slot, kind))
            else:
                name = socket["name"].rpartition(".")[2]
                name = name if name not in names else f"{name}_{len(names)}"
                label = _shown(nodes[target]["type"], socket["name"])
                known = sockets.setdefault((origin, output), {"name": name, **label, "type": kind, "linkIds": []})
                names.add(known["name"])
                known["linkIds"].append(number)
                place = list(sockets).index((origin, output))
                links.append(_link(number, _INPUT, place, target, slot, kind))
        elif origin in ids and _wanted(graph, target):
            known = results.setdefault((origin, output), {"name": kind, "type": kind, "linkIds": [number]})
            if known["linkIds"] == [number]:
                links.append(_link(number, origin, output, _OUTPUT, list(results).index((origin, output)), kind))
    return links, sockets, results


def _shown(kind: str, name: str) -> dict:
    """Return the label of an input's socket where the node shows another name than the input's own."""
    names = json.loads(NAMES.read_text(encoding="utf-8")).get(kind, {}).get("inputs", {})
    entry = names.get(name.replace(".", "_"))
    return {"label": entry["name"]} if entry else {}


def _wanted(graph: dict, target: int) -> bool:
    return next(node["type"] for node in graph["nodes"] if node["id"] == target) != "VSRPlan"


def _link(number: int, origin: int, output: int, target: int, slot: int, kind: str) -> dict:
    return {
        "id": number, "origin_id": origin, "origin_slot": output, "target_id": target, "target_slot": slot,
        "type": kind,
    }  # fmt: skip


def _tidy(nodes, links: list[dict]) -> None:
    """Let every output of the inner nodes name the links that are left."""
    for node in nodes:
        for slot, output in enumerate(node.get("outputs", ())):
            own = [link["id"] for link in links if (link["origin_id"], link["origin_slot"]) == (node["id"], slot)]
            output["links"] = own or None


def _file(blueprint: Blueprint, nodes, links, sockets, results, widgets) -> dict:
    key = {part: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{blueprint.name}/{part}")) for part in ("graph", "outer")}
    left, right = (
        min(n["pos"][0] for n in nodes) - 250,
        max(n["pos"][0] + n["size"][0] for n in nodes) + 100,
    )
    outer_id = max(node["id"] for node in nodes) + 1

    def ends(slots, x):
        for place, slot in enumerate(slots):
            yield {
                "id": str(uuid.uuid5(uuid.UUID(key["outer"]), slot["name"])),
                **slot,
                "pos": [x, 20 + 20 * place],
            }

    definition = {
        "id": key["graph"],
        "version": 1,
        "state": {
            "lastGroupId": 0, "lastNodeId": outer_id, "lastLinkId": max(link["id"] for link in links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": _INPUT, "bounding": [left, 0, 150, 40 + 20 * len(sockets)]},
        "outputNode": {"id": _OUTPUT, "bounding": [right, 0, 120, 40 + 20 * len(results)]},
        "inputs": list(ends(sockets, left + 130)),
        "outputs": list(ends(results, right + 20)),
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {"workflowRendererVersion": "LG"},
        "category": CATEGORY,
        "description": blueprint.description,
    }  # fmt: skip
    outer = {
        "id": outer_id,
        "type": key["graph"],
        "pos": [0, 0],
        "size": [320, 120 + 26 * (len(sockets) + len(widgets))],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {**{key: value for key, value in slot.items() if key != "linkIds"}, "link": None} for slot in sockets
        ],
        "outputs": [{"name": slot["name"], "type": slot["type"], "links": None} for slot in results],
        "title": blueprint.name,
        "properties": {"proxyWidgets": widgets},
        "widgets_values": [],
    }
    return {
        "revision": 0, "last_node_id": outer_id, "last_link_id": 0, "nodes": [outer], "links": [], "version": 0.4,
        "definitions": {"subgraphs": [definition]}, "extra": {},
    }  # fmt: skip


def blueprint_text(blueprint: Blueprint, graph: dict) -> str:
    """Write a blueprint the way it is stored."""
    return json.dumps(derive(blueprint, graph), indent=1, ensure_ascii=False) + "\n"
