"""RAFT, the large model (Teed & Deng 2020): dense optical flow from all-pairs correlation and a recurrent refiner.

Keys are those of the published `raft-things.pth` without "module.". Images are (b, 3, h, w) in -1..1, flows
(b, 2, h, w) in px, (dx, dy), from the first image to the second. Everything runs in float32.
"""

from collections.abc import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F

STRIDE = 8  # px a cell of the recurrent part stands for
SMALLEST = 128  # px; below it the coarsest correlation level would be one cell wide
_LEVELS, _RADIUS = 4, 4
_WIDTH = 256  # channels of the features; half of them hidden state, half context


# torchvision's names of the same network -> the published ones; applied in this order.
_TORCHVISION = (
    ("feature_encoder.", "fnet."),
    ("context_encoder.", "cnet."),
    ("mask_predictor.convrelu.0.", "update_block.mask.0."),
    ("mask_predictor.conv.", "update_block.mask.2."),
    ("motion_encoder.convcorr1.0.", "encoder.convc1."),
    ("motion_encoder.convcorr2.0.", "encoder.convc2."),
    ("motion_encoder.convflow1.0.", "encoder.convf1."),
    ("motion_encoder.convflow2.0.", "encoder.convf2."),
    ("motion_encoder.conv.0.", "encoder.conv."),
    *((f"recurrent_block.convgru{n}.conv{gate}.", f"gru.conv{gate}{n}.") for n in (1, 2) for gate in "zrq"),
    ("convnormrelu.0.", "conv1."),
    ("convnormrelu.1.", "norm1."),
    *(
        (f"convnormrelu{n}.{part}.", f"{name}{n}.")
        for n in (1, 2)
        for part, name in enumerate(("conv", "norm"))
    ),
    ("net.conv.", "net.conv2."),
)


def raft_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring weights of the large RAFT, as published or as torchvision has them, to the keys of RAFT.

    Other weights come back with other keys: ask is_raft().
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("feature_encoder.") for key in state):
        state = {_renamed(key): value for key, value in state.items()}
    alias = ("downsample.1.", "norm3.")
    return {key.replace(*names): value for names in (alias, alias[::-1]) for key, value in state.items()}


def _renamed(key: str) -> str:
    for old, new in _TORCHVISION:
        key = key.replace(old, new)
    return key


def is_raft(state: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether weights that went through raft_state() are those of the large RAFT."""
    needed = ("fnet.conv1.weight", "cnet.norm1.running_mean", "update_block.gru.convz2.weight")
    return all(key in state for key in needed) and state["fnet.conv1.weight"].shape[0] == 64


class RAFT(nn.Module):
    """Estimate flow between two images; convolutions come from `ops`, norms hold no more than statistics."""

    def __init__(self, ops=nn):
        super().__init__()
        self.fnet = _Encoder(ops, lambda channels: nn.InstanceNorm2d(channels))
        self.cnet = _Encoder(ops, nn.BatchNorm2d)
        self.update_block = _Update(ops)

    def forward(self, image1: torch.Tensor, image2: torch.Tensor, iterations: int = 20) -> torch.Tensor:
        """Give the flow image1 -> image2; sides must be multiples of 8 and at least 128 px."""
        return self.estimate(image1, image2, iterations)[1]

    def estimate(
        self, image1: torch.Tensor, image2: torch.Tensor, iterations: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the flow at an eighth of the size, in its own cells, and the full one (b, 2, h, w)."""
        _check(image1, image2)
        first, second = self.fnet(image1), self.fnet(image2)
        hidden, context = self.cnet(image1).chunk(2, dim=1)
        hidden, context = hidden.tanh(), context.relu()
        pyramid = _correlations(first, second)
        grid = _pixel_grid(first)
        coords = grid
        for _ in range(iterations):
            hidden, step = self.update_block(hidden, context, _look_up(pyramid, coords), coords - grid)
            coords = coords + step
        flow = coords - grid
        return flow, _upsample(flow, self.update_block.upsampling(hidden))


# Encoders


class _Encoder(nn.Module):
    def __init__(self, ops, norm):
        super().__init__()
        self.conv1 = ops.Conv2d(3, 64, 7, stride=2, padding=3)
        self.norm1 = norm(64)
        self.layer1 = nn.Sequential(_Block(ops, norm, 64, 64, 1), _Block(ops, norm, 64, 64, 1))
        self.layer2 = nn.Sequential(_Block(ops, norm, 64, 96, 2), _Block(ops, norm, 96, 96, 1))
        self.layer3 = nn.Sequential(_Block(ops, norm, 96, 128, 2), _Block(ops, norm, 128, 128, 1))
        self.conv2 = ops.Conv2d(128, _WIDTH, 1)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class _Block(nn.Module):
    """Residual block; the norm of its shortcut is published under two names, norm3 and downsample.1."""

    def __init__(self, ops, norm, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = ops.Conv2d(width_in, width, 3, stride=stride, padding=1)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1)
        self.norm1, self.norm2 = norm(width), norm(width)
        self.downsample = None
        if stride > 1:
            self.norm3 = norm(width)
            self.downsample = nn.Sequential(ops.Conv2d(width_in, width, 1, stride=stride), self.norm3)

    def forward(self, x):
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        shortcut = x if self.downsample is None else self.downsample(x)
        return (shortcut + y).relu()


# Correlation


def _correlations(first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
    """Correlate every cell with every cell: four maps (b*h*w, 1, h_l, w_l), each half the size of the last."""
    batch, channels, height, width = first.shape
    scores = torch.einsum("bcp,bcq->bpq", first.flatten(2), second.flatten(2)) / channels**0.5
    pyramid = [scores.view(batch * height * width, 1, height, width)]
    for _ in range(_LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return pyramid


def _look_up(pyramid: list[torch.Tensor], coords: torch.Tensor) -> torch.Tensor:
    """Sample 9x9 windows around `coords` (b, 2, h, w) on every level: (b, 324, h, w), x offset outermost."""
    batch, _, height, width = coords.shape
    centre = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    reach = torch.arange(-_RADIUS, _RADIUS + 1, device=coords.device, dtype=coords.dtype)
    window = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), -1)
    found = []
    for level, scores in enumerate(pyramid):
        size = coords.new_tensor([scores.shape[-1] - 1, scores.shape[-2] - 1])
        grid = 2 * (centre / 2**level + window) / size - 1
        sampled = F.grid_sample(scores, grid, align_corners=True)
        found.append(sampled.view(batch, height, width, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()


def _pixel_grid(x: torch.Tensor) -> torch.Tensor:
    batch, _, height, width = x.shape
    rows = torch.arange(height, device=x.device, dtype=x.dtype).view(1, -1, 1).expand(batch, -1, width)
    columns = torch.arange(width, device=x.device, dtype=x.dtype).view(1, 1, -1).expand(batch, height, -1)
    return torch.stack((columns, rows), 1)


# Recurrent refinement


class _Update(nn.Module):
    def __init__(self, ops):
        super().__init__()
        self.encoder = _MotionEncoder(ops)
        self.gru = _SeparableGRU(ops)
        self.flow_head = _FlowHead(ops)
        self.mask = nn.Sequential(ops.Conv2d(128, 256, 3, padding=1), nn.ReLU(), ops.Conv2d(256, 576, 1))

    def forward(self, hidden, context, correlation, flow):
        """Give the next hidden state and the step of the flow."""
        motion = self.encoder(flow, correlation)
        hidden = self.gru(hidden, torch.cat((context, motion), 1))
        return hidden, self.flow_head(hidden)

    def upsampling(self, hidden):
        """Give the weights of the nine neighbours of every full-size pixel, before the softmax."""
        return 0.25 * self.mask(hidden)


class _MotionEncoder(nn.Module):
    def __init__(self, ops):
        super().__init__()
        self.convc1 = ops.Conv2d(_LEVELS * (2 * _RADIUS + 1) ** 2, 256, 1)
        self.convc2 = ops.Conv2d(256, 192, 3, padding=1)
        self.convf1 = ops.Conv2d(2, 128, 7, padding=3)
        self.convf2 = ops.Conv2d(128, 64, 3, padding=1)
        self.conv = ops.Conv2d(256, 126, 3, padding=1)

    def forward(self, flow, correlation):
        seen = self.convc2(self.convc1(correlation).relu()).relu()
        moved = self.convf2(self.convf1(flow).relu()).relu()
        return torch.cat((self.conv(torch.cat((seen, moved), 1)).relu(), flow), 1)


class _SeparableGRU(nn.Module):
    """A gated step along the rows, then one along the columns."""

    def __init__(self, ops):
        super().__init__()
        for number, kernel, padding in ((1, (1, 5), (0, 2)), (2, (5, 1), (2, 0))):
            for gate in "zrq":
                setattr(self, f"conv{gate}{number}", ops.Conv2d(384, 128, kernel, padding=padding))

    def forward(self, hidden, x):
        hidden = _gated(self.convz1, self.convr1, self.convq1, hidden, x)
        return _gated(self.convz2, self.convr2, self.convq2, hidden, x)


def _gated(update, reset, candidate, hidden, x):
    joined = torch.cat((hidden, x), 1)
    share = update(joined).sigmoid()
    proposed = candidate(torch.cat((reset(joined).sigmoid() * hidden, x), 1)).tanh()
    return (1 - share) * hidden + share * proposed


class _FlowHead(nn.Module):
    def __init__(self, ops):
        super().__init__()
        self.conv1 = ops.Conv2d(128, 256, 3, padding=1)
        self.conv2 = ops.Conv2d(256, 2, 3, padding=1)

    def forward(self, hidden):
        return self.conv2(self.conv1(hidden).relu())


def _upsample(flow: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Make every full-size vector a convex mix of its nine coarse neighbours (zeros outside)."""
    batch, _, height, width = flow.shape
    weights = mask.view(batch, 1, 9, STRIDE, STRIDE, height, width).softmax(2)
    near = F.unfold(STRIDE * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    full = (weights * near).sum(2).permute(0, 1, 4, 2, 5, 3)
    return full.reshape(batch, 2, STRIDE * height, STRIDE * width)


def _check(image1: torch.Tensor, image2: torch.Tensor) -> None:
    height, width = image1.shape[-2:]
    if image1.shape != image2.shape or height % STRIDE or width % STRIDE or min(height, width) < SMALLEST:
        raise ValueError(
            f"RAFT: both images must have one size, sides multiples of {STRIDE} and at least {SMALLEST} px; got "
            f"{tuple(image1.shape)} and {tuple(image2.shape)}. Estimate through RaftFlow, which resizes."
        )
