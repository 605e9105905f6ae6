"""Motion guidance (MGLD-VSR): how far the frames of a latent clip disagree along the motion, and steps against it.

A clip is (b, c, t, h, w). Forward flow i leads from frame i to i + 1, backward flow i from i + 1 to i, both
(b or 1, 2, t - 1, h, w) in cells, (dx, dy).

What guide_clean() does with a clean latent:

1. with_seen() marks, (b or 1, 1, t - 1, h, w), what both frames of a pair show; the rest never counts.
2. motion_gradient() warps every neighbour onto its frame, (n, c, h, w) for n pairs at a time, so that memory does not
   grow with the clip. The loss is the mean |warped neighbour - frame|; below a knee, the square (Huber's loss).
3. Its gradient (b, c, t, h, w) is taken with respect to the latent alone: no network is differentiated.
4. Eight short steps move the latent against the gradient.

published_update() instead moves the noisy latent once a step, as the published program does.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from .flow import DIRECTIONS, occlusion, sample, sampling_grid

DEFAULT, PUBLISHED = "default", "published"
FORMS = (DEFAULT, PUBLISHED)
SEGMENT = 5  # frames that the published program samples, and guides, by themselves
PUBLISHED_STRENGTH = 10.0  # of its inference scripts
_KEPT = 1 << 22  # cells of a clip up to which the places where pairs meet are kept for all steps
_OUTSIDE = -8.0  # of a grid whose frames reach from -1 to 1
_AT_ONCE = 1 << 21  # latent values of the frames whose pairs are differentiated together, or else one pair

# Of the clean latent: a frame is in four summands and an alternating one doubles that, so that steps of an eighth never
# overshoot. The knee, in deviations of a channel, was chosen on the built-in model decoded without its LR frames: up
# to here PSNR holds within 0.1 dB, from twice as much on steadiness is bought with detail.
_ROUNDS, _STEP = 8, 1 / 8
_KNEE = 0.05


class Flows(NamedTuple):
    """Hold the flows of a clip, and (b or 1, 1, t - 1, h, w) what is seen again along them: 1, or 0 where hidden.

    Without `seen` it is worked out from the flows, pair by pair.
    """

    forward: torch.Tensor
    backward: torch.Tensor
    forward_seen: torch.Tensor | None = None
    backward_seen: torch.Tensor | None = None


class _Term(NamedTuple):
    """One summand: frame `target` against frame `source`, or against zeros, seen along a flow."""

    target: int
    source: int | None
    ahead: bool  # the source is the next frame, else the one before
    flow_pair: int
    seen_pair: int


def motion_gradient(
    x: torch.Tensor,
    flows: Flows,
    *,
    form: str = DEFAULT,
    direction: str = "both",
    cuts: Sequence[int] = (),
    segment: int | None = None,
    knee: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the loss and its gradient, float32: over all pairs, the mean |warped neighbour - frame| where seen.

    direction "backward" compares frames with the next one, "forward" with the one before. Nothing is compared
    across `cuts`, frames that start a new scene, nor across segments of `segment` frames. Differences below
    `knee`, which broadcasts to (n, c, h, w), count by their square (Huber's loss, slope 1 beyond it).
    """
    _check(x, flows, form, direction)
    x, gradient = x.float(), torch.zeros_like(x, dtype=torch.float32)
    loss = torch.zeros((), device=x.device)
    for meeting in _meetings(x, flows, form, direction, cuts, segment):
        loss += _add_gradient(gradient, x, meeting, knee, True)
    return loss, gradient


@torch.no_grad()
def guide_clean(
    x: torch.Tensor,
    flows: Flows,
    strength: float = 1.0,
    *,
    form: str = DEFAULT,
    direction: str = "both",
    cuts: Sequence[int] = (),
    segment: int | None = None,
    kept: list | None = None,
) -> torch.Tensor:
    """Move a clean latent (b, c, t, h, w) against the motion loss; the step does not depend on the clip's size.

    Small differences (flicker) vanish; large ones (content or wrong motion) lose at most 0.4 deviations of their
    channel at `strength` 1, in proportion at others. Frames never move past each other.

    `kept`: an empty list, given to every call for a clip with the same flows and settings. The first call keeps in it
    where frames meet, if that takes little memory; the next ones need not work it out.
    """
    if x.shape[2] < 2 or strength == 0:
        return x
    on_device = Flows(*(part.to(x.device) for part in with_seen(flows)))
    moved = x.float()
    knee = strength * _KNEE * moved.std((0, 2, 3, 4), correction=0, keepdim=True)[:, :, 0].clamp_min(1e-6)
    length = _STEP * knee[:, :, None] * moved[:, :, 0].numel()  # of a mean's gradient
    _check(x, on_device, form, direction)
    kept, small = [] if kept is None else kept, x[0, 0].numel() <= _KEPT
    if small and not kept:
        kept.extend(_meetings(moved, on_device, form, direction, cuts, segment))
    for _ in range(_ROUNDS):
        gradient = torch.zeros_like(moved)
        for meeting in kept if small else _meetings(moved, on_device, form, direction, cuts, segment):
            _add_gradient(gradient, moved, meeting, knee, False)
        moved = moved - length * gradient
    return moved.to(x.dtype)


def with_seen(flows: Flows) -> Flows:
    """Work out what is seen again along flows that come without it."""
    if flows.forward_seen is not None and flows.backward_seen is not None:
        return flows
    pairs = range(flows.forward.shape[2])
    if not pairs:
        return Flows(flows.forward, flows.backward, flows.forward[:, :1], flows.backward[:, :1])
    ahead = [1 - occlusion(flows.forward[:, :, i], flows.backward[:, :, i]) for i in pairs]
    behind = [1 - occlusion(flows.backward[:, :, i], flows.forward[:, :, i]) for i in pairs]
    return Flows(flows.forward, flows.backward, *(torch.stack(seen, 2) for seen in (ahead, behind)))


def published_update(x: torch.Tensor, gradient: torch.Tensor, log_variance: float, strength: float):
    """Move a noisy latent, after the noise of a step was added: x + strength log(variance) gradient."""
    return x + strength * log_variance * gradient.to(x.dtype)


def spans(frames: int, cuts: Sequence[int] = (), segment: int | None = None) -> list[tuple[int, int]]:
    """Give the (start, stop) of the scenes of a clip, each cut into segments."""
    starts = {0, *(cut for cut in cuts if 0 < cut < frames)}
    if segment is not None:
        starts |= set(range(0, frames, segment))
    edges = [*sorted(starts), frames]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _terms(start: int, stop: int, form: str, direction: str) -> Iterator[_Term]:
    """Give the summands of one span, in the published order.

    The published program warps with the flow of the pair that its loop met before: the first frame of each
    direction meets zeros instead of its neighbour, the others a neighbour moved by the wrong pair's flow.
    """
    published = form == PUBLISHED
    if direction != "forward":
        for i in reversed(range(start, stop - 1)):
            first = published and i == stop - 2
            yield _Term(i, None if first else i + 1, True, min(i + published, stop - 2), i)
    if direction != "backward":
        for i in range(start + 1, stop):
            first = published and i == start + 1
            yield _Term(i, None if first else i - 1, False, max(i - 1 - published, start), i - 1)


class _Meeting(NamedTuple):
    """Summands, n pairs: the numbers of their frames (n,), and where and what both see."""

    targets: torch.Tensor
    sources: torch.Tensor
    grid: torch.Tensor  # (b, n, h, w, 2), where the neighbour is found
    seen: torch.Tensor  # (b, n, 1, h, w), or 0 where the neighbour is made of zeros


def _meetings(
    x: torch.Tensor, flows: Flows, form: str, direction: str, cuts: Sequence[int], segment: int | None
) -> Iterator[_Meeting]:
    """Give all summands, of both directions and as many at a time as memory should hold."""
    at_once = max(1, _AT_ONCE // max(1, x[:, :, 0].numel()))
    scenes = spans(x.shape[2], cuts, segment)
    terms = [term for start, stop in scenes for term in _terms(start, stop, form, direction)]
    for first in range(0, len(terms), at_once):
        ways = [[term for term in terms[first : first + at_once] if term.ahead is ahead] for ahead in (True, False)]
        each = zip(*(_meeting(x, flows, way) for way in ways if way), strict=True)
        yield _Meeting(*(torch.cat(parts, dim) for parts, dim in zip(each, (0, 0, 1, 1), strict=True)))


def _meeting(x: torch.Tensor, flows: Flows, terms: Sequence[_Term]) -> _Meeting:
    """Give the summands of one direction."""
    flow, seen = _along(terms, flows, x)
    grid = sampling_grid(flow)
    # Nothing is found outside of a frame: a grid that leads there gives the zeros that some published pairs meet.
    absent = torch.tensor([term.source is None for term in terms], device=x.device).repeat(len(x))
    grid = torch.where(absent.view(-1, 1, 1, 1), torch.full_like(grid, _OUTSIDE), grid)
    targets = [term.target for term in terms]
    sources = [term.target if term.source is None else term.source for term in terms]
    places = (part.unflatten(0, (len(x), len(terms))) for part in (grid, seen))
    return _Meeting(*(torch.tensor(frames, device=x.device) for frames in (targets, sources)), *places)


def _add_gradient(
    gradient: torch.Tensor, x: torch.Tensor, meeting: _Meeting, knee: torch.Tensor | None, told: bool
) -> torch.Tensor | float:
    """Add the gradient of summands, worked out by hand, and give their loss, where it is `told`."""
    target, source = (
        x.index_select(2, frames).transpose(1, 2).flatten(0, 1) for frames in (meeting.targets, meeting.sources)
    )
    grid, seen = meeting.grid.flatten(0, 1), meeting.seen.flatten(0, 1)
    difference = sample(source, grid, padding="zeros").sub_(target).mul_(seen)
    loss, count = 0.0, x[:, :, 0].numel()
    if told:
        size = difference.abs()
        if knee is not None:
            size = torch.where(size < knee, size.square() / (2 * knee), size - knee / 2)
        loss = size.sum() / count
    slope = difference.sign() if knee is None else difference.div_(knee).clamp_(-1, 1)
    slope = slope.mul_(seen).div_(count)
    corners = min(x.shape[-2:]) > 1  # as sample() has them
    back = torch.ops.aten.grid_sampler_2d_backward(slope, source, grid, 0, 0, corners, (True, False))[0]
    for frames, part in ((meeting.targets, slope.neg_()), (meeting.sources, back)):
        gradient.index_add_(2, frames, part.unflatten(0, (len(x), -1)).transpose(1, 2))
    return loss


def _along(terms: Sequence[_Term], flows: Flows, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the flows and the weights of summands of one direction, (b * n, ., h, w) on the device of x."""
    ahead = terms[0].ahead
    flow, opposite = (flows.forward, flows.backward) if ahead else (flows.backward, flows.forward)
    seen = flows.forward_seen if ahead else flows.backward_seen

    def pairs(stack: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        chosen = stack[:, :, list(numbers)].to(x.device, torch.float32)
        return chosen.expand(len(x), -1, -1, -1, -1).transpose(1, 2).flatten(0, 1)

    numbers = [term.seen_pair for term in terms]
    if seen is not None:
        return pairs(flow, [term.flow_pair for term in terms]), pairs(seen, numbers)
    hidden = occlusion(pairs(flow, numbers), pairs(opposite, numbers))
    return pairs(flow, [term.flow_pair for term in terms]), 1 - hidden


def _check(x: torch.Tensor, flows: Flows, form: str, direction: str) -> None:
    if form not in FORMS or direction not in DIRECTIONS:
        raise ValueError(
            f"form must be one of {', '.join(FORMS)} and direction one of {', '.join(DIRECTIONS)}; got {form!r} and "
            f"{direction!r}. Use {DEFAULT} and both."
        )
    shapes = [tuple(flow.shape) for flow in flows[:2]]
    matching = x.ndim == 5 and all(
        len(shape) == 5 and shape[0] in (1, x.shape[0]) and shape[1:] == (2, x.shape[2] - 1, *x.shape[3:])
        for shape in shapes
    )
    if not matching:
        raise ValueError(
            "a clip (b, c, t, h, w) needs flows (b, 2, t - 1, h, w) on its own grid; got "
            f"{tuple(x.shape)}, {shapes[0]} and {shapes[1]}. Estimate the motion of this clip, with all its frames."
        )
