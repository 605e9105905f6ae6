"""What reproduces a recorded case: (family, kind) -> function from the case to its outputs.

A new network adds its functions here; a kind without one is listed by the tests, never skipped unseen.
"""

import torch
import torch.nn.functional as F
from cascadevsr.models.layout.pieces import plan_windows
from cascadevsr.models.motion.flow import occlusion, resize_flow, warp
from cascadevsr.models.pixels.color import adain, low_frequencies, wavelet

from . import mgld_networks, mgld_sampling, uav_motion, uav_networks, uav_sampling
from .cases import Case, Tensors


def _frames(clip: torch.Tensor) -> torch.Tensor:
    """Turn (b, c, h, w) in -1..1 into (B, H, W, C) in 0..1."""
    return (clip.movedim(1, -1) + 1) / 2


def _signed(frames: torch.Tensor) -> torch.Tensor:
    return (frames * 2 - 1).movedim(-1, 1)


def mgld_colorfix(case: Case) -> Tensors:
    """AdaIN and wavelet colour fix, and the two wavelet bands."""
    given = case.group("in")
    content, style = _frames(given["content"]), _frames(given["style"])
    low = low_frequencies(given["content"])
    return {
        "adain": _signed(adain(content, style)),
        "wavelet": _signed(wavelet(content, style)),
        "wavelet_low_of_content": low,
        "wavelet_high_of_content": given["content"] - low,
    }


def mgld_flow_utils(case: Case) -> Tensors:
    """Warping with both borders, resizing of flow."""
    given = case.group("in")
    flow, x = given["flow"], given["x"]
    half = resize_flow(flow, flow.shape[-2] // 2, flow.shape[-1] // 2)
    return {
        "warp": warp(x, flow, padding="zeros"),
        "warp_border": warp(x, flow),
        "resize_a": half,
        "resize_b": resize_flow(flow, 9, 30),
        "resize_ratio": half,
    }


def mgld_occlusion(case: Case) -> Tensors:
    """Occlusion masks of both directions."""
    given = case.group("in")
    later, former = given["flow_fwd_prop"][0], given["flow_bwd_prop"][0]
    limits = {"a": case.meta["alpha"], "b": case.meta["beta"]}
    return {
        "fwd_occ": occlusion(former, later, **limits)[None],
        "bwd_occ": occlusion(later, former, **limits)[None],
        "warp_f0_by_f1_pair0": warp(later[:1], former[:1], padding="zeros"),
    }


def mgld_canvas_layout(case: Case) -> Tensors:
    """Latent tiles, columns outermost; the plan is in the json, so it is compared here."""
    for layout in case.meta["cases"]:
        tile, overlap = layout["tile"], layout["overlap"]
        rows, columns = (plan_windows(layout[side], tile, overlap) for side in "hw")
        tiles = [[row.start, column.start, tile, tile] for column in columns for row in rows]
        assert tiles == layout["tiles_y_x_h_w_in_call_order"], layout
    return {}


def mgld_pixel_tiles(case: Case) -> Tensors:
    """Pixel tiles, columns outermost, and the uniform average of what the tiles return."""
    for layout in case.meta["layouts"]:
        tiles = _pixel_tiles(layout["h"], layout["w"], layout["patch"], layout["stride"])
        assert tiles == layout["tiles_h0_h1_w0_w1"], layout
    image = case.group("in")["im"]
    total, count = torch.zeros_like(image), torch.zeros_like(image)
    tiles = _pixel_tiles(*image.shape[-2:], case.meta["blend_patch"], case.meta["blend_stride"])
    for number, (top, bottom, left, right) in enumerate(tiles, 1):
        patch = image[..., top:bottom, left:right]
        total[..., top:bottom, left:right] += patch * (1 + 0.1 * number) + number
        count[..., top:bottom, left:right] += 1
    return {"blend": total / count}


def _pixel_tiles(height: int, width: int, patch: int, stride: int) -> list[list[int]]:
    rows, columns = (plan_windows(side, patch, patch - stride) for side in (height, width))
    # Ends by the patch, not by the window: on a shorter axis the recorded tile reaches past the image.
    return [[row.start, row.start + patch, column.start, column.start + patch] for column in columns for row in rows]


def uav_colour(case: Case) -> Tensors:
    """AdaIN and wavelet against the LR frames, up-scaled by the bicubic filter of the recorded pipeline."""
    given = case.group("in")
    enlarged = F.interpolate(given["lr"], scale_factor=4, mode="bicubic", align_corners=False)
    result, reference = _frames(given["output"]), _frames(enlarged)
    return {"adain": _signed(adain(result, reference)), "wavelet": _signed(wavelet(result, reference))}


RUNNERS = {
    ("mgld_vsr", "canvas_layout"): mgld_canvas_layout,
    ("mgld_vsr", "colorfix"): mgld_colorfix,
    ("mgld_vsr", "flow_utils"): mgld_flow_utils,
    ("mgld_vsr", "occlusion"): mgld_occlusion,
    ("mgld_vsr", "pixel_tiles"): mgld_pixel_tiles,
    ("upscale_a_video", "colour"): uav_colour,
    **mgld_networks.RUNNERS,
    **mgld_sampling.RUNNERS,
    **uav_motion.RUNNERS,
    **uav_networks.RUNNERS,
    **uav_sampling.RUNNERS,
}
