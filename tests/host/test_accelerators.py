"""The host's nodes that patch a model: each works, has no effect, or is refused in one line before sampling starts."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch

from ..test_docs import ROOT

OURS = ("Upscale-A-Video", "MGLD-VSR", "built-in")
ALL = (*OURS, "Wan 2.1")
CUTS = {"tiles": (True, False), "windows": (False, True), "both": (True, True)}


@pytest.fixture(scope="module")
def bench(core, tmp_path_factory):
    """The module of the bench, its subjects, and what they give without a node."""
    from cascadevsr.research import accelerators

    with torch.inference_mode():
        subjects = accelerators.make_subjects(tmp_path_factory.mktemp("accelerators"))
        plain = {name: accelerators.sample(each, each.model, 2) for name, each in subjects.items()}
    return SimpleNamespace(module=accelerators, subjects=subjects, plain=plain)


def rows():
    from cascadevsr.research.accelerators import ROWS

    return [pytest.param(row, id=row.node.replace(" ", "")) for row in ROWS]


@pytest.mark.parametrize("system", OURS)
@pytest.mark.parametrize("row", rows())
def test_every_node_does_what_the_table_says(bench, row, system, caplog):
    module, subject, calls = bench.module, bench.subjects[system], []
    if row.on(system) == module.REFUSED:
        with pytest.raises((ValueError, KeyError, AttributeError), match="Take |Use EasyCache") as refused:
            module.sample(subject, row.put(subject.model), 2, calls)
        assert not calls and "\n" not in str(refused.value)
        return
    with caplog.at_level(logging.WARNING):
        steps = 10 if row.module == "easycache" else 2
        found = module.sample(subject, row.put(subject.model), steps, calls)
    assert torch.isfinite(found).all() and calls
    if row.on(system) == module.IDLE:
        assert module.likeness(found, bench.plain[system]) > 100  # not bit for bit: some predict in other batches
    elif steps == 2:
        assert not torch.equal(found, bench.plain[system])
    told = [record.message for record in caplog.records if "no effect on" in record.message]
    assert bool(told) == (row.on(system) == module.IDLE and row.node not in QUIET)


# These change nothing on one CPU, or are the host's own placeholder, or act where a part of the clip is masked
QUIET = {"wanBlockSwap", "SelectModelDevice", "MultiGPU_WorkUnits", "DifferentialDiffusion"}
QUIET |= {"UNetSelfAttentionMultiply", "UNetCrossAttentionMultiply", "UNetTemporalAttentionMultiply"}


def test_the_page_says_the_same(bench):
    """docs/accelerators.md has every row, with the same words."""
    text = (ROOT / "docs" / "accelerators.md").read_text(encoding="utf-8")
    found = {cells[0]: cells[1:3] for cells in (re.findall(r"[^|]+", line) for line in text.splitlines()) if cells}
    told = {name.strip().strip("`"): [each.strip() for each in cells] for name, cells in found.items()}
    for row in (*bench.module.ROWS, *bench.module.SCHEDULERS):
        assert told.get(row.node) == [row.fixed, row.flow], row.node


def cached(model, threshold, before):
    """Put EasyCache before or behind Tiles and Windows: cached(model, threshold, True)."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, threshold, 0.15, 0.95, False).args[0] if before else model


@pytest.mark.parametrize("parts", CUTS, ids=str)
@pytest.mark.parametrize("system", ALL)
def test_easycache_that_reuses_nothing_is_none_bit_for_bit(bench, system, parts):
    module, subject = bench.module, bench.subjects[system]
    plain = module.sample(subject, module.cut(subject, subject.model, *CUTS[parts]), 4)
    for before in (True, False):
        model = module.cut(subject, cached(subject.model, 0.0, before), *CUTS[parts])
        assert torch.equal(module.sample(subject, cached(model, 0.0, not before), 4), plain)


@pytest.mark.parametrize("parts", CUTS, ids=str)
@pytest.mark.parametrize("system", ALL)
def test_easycache_saves_a_quarter_of_the_calls(bench, system, parts):
    module, subject, calls, less = bench.module, bench.subjects[system], [], []
    plain = module.sample(subject, module.cut(subject, subject.model, *CUTS[parts]), 12, calls)
    model = module.cut(subject, cached(subject.model, 0.2, True), *CUTS[parts])
    found = module.sample(subject, model, 12, less)
    assert len(less) <= 0.75 * len(calls)
    whole = module.sample(subject, subject.model, 12)
    alone = module.likeness(module.sample(subject, cached(subject.model, 0.2, True), 12), whole)
    assert module.likeness(found, plain) > alone - 6  # far more is lost where caches mix


@pytest.mark.parametrize("parts", CUTS, ids=str)
def test_every_piece_has_its_own_cache(bench, parts):
    """Where the clip is bright the network always answers the same, else never: only the former is left out."""
    from cascadevsr.nodes.host.keys import LR_KEY
    from comfy.patcher_extension import WrappersMP

    module, subject, seen = bench.module, bench.subjects["Upscale-A-Video"], []
    pieces = 4 if parts == "both" else 2
    lr = torch.zeros_like(subject.positive[0][1][LR_KEY])
    lr[..., 10:] = 0.0 if parts == "windows" else 5.0
    lr[:, :, 5:] += 5.0 if parts == "windows" else 0.0
    texts = [[[text, {**values, LR_KEY: lr}] for text, values in each] for each in (subject.positive, subject.negative)]
    model = subject.model.clone()

    def network(executor, x, *args, **kwargs):
        bright = float(x[:, 4:].mean()) > 1
        seen.append(bright)
        return torch.full_like(x[:, :4], 1.0 if bright else (-2.0) ** (seen.count(False) // (pieces // 2) % 2))

    given = module.Subject(model, *texts, subject.latent, subject.tile, subject.window)
    cut = module.cut(subject, cached(model, 0.2, True), *CUTS[parts])
    cut.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "network", network)
    module.sample(given, cut, 12)
    assert seen.count(False) == 12 * pieces // 2 and seen.count(True) <= 0.5 * seen.count(False)


@pytest.mark.parametrize("parts", CUTS, ids=str)
@pytest.mark.parametrize("tool", ["propagation", "references", "guider"])
def test_easycache_beside_our_tools(bench, core, scene, worded, parts, tool):
    """With references in three branches, and with propagation: equal at threshold 0, fewer calls above it."""
    from cascadevsr.models.motion.estimation import Motion
    from cascadevsr.nodes.guidance import ReferenceCFG, ReferenceCFGGuider
    from cascadevsr.nodes.motion import LatentPropagation
    from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas
    from comfy.patcher_extension import WrappersMP

    clip, base, steps = scene(17), worded[0], 8
    if tool == "propagation":
        flow, whole = torch.full((16, 2, 12, 20), 0.3), {"steps": "percent range", "start_percent": 0, "end_percent": 1}
        motion = Motion(flow, -flow, (), 17, 12, 20)
        base = LatentPropagation.execute(base, motion, whole, "both", 0.3, "nearest", 0.001, 0.05).args[0]
    elif tool == "references":
        base = ReferenceCFG.execute(base, 1.0, 3).args[0]
    sigmas = RefineSigmas.execute(base, 1.0, steps, 1.0).args[0]
    subject = bench.module.Subject(base, clip.positive, clip.negative, clip.samples, (64, 48, 16), (9, 4))

    def run(threshold):
        model = base if threshold is None else cached(base, threshold, True)
        model, calls = bench.module.cut(subject, model, *CUTS[parts]), []

        def watch(executor, x, *args, **kwargs):
            calls.append(len(x))
            return executor(x, *args, **kwargs)

        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
        texts = clip.positive, clip.negative
        if tool == "guider":
            guider = ReferenceCFGGuider.execute(model, texts[0], 1.0, 1.0, 3, texts[1]).args[0]
        else:
            guider = core.custom.CFGGuider.execute(model, *texts, 2.0).args[0]
        sampler = core.custom.KSamplerSelect.execute("euler").args[0]
        done = core.custom.SamplerCustomAdvanced.execute(AddressedNoise(3), guider, sampler, sigmas, clip.samples)
        return done.args[0]["samples"], sum(calls)

    plain, calls = run(None)
    assert torch.equal(run(0.0)[0], plain)
    found, fewer = run(1.5)  # the random network changes much from step to step
    assert torch.isfinite(found).all() and fewer < 0.9 * calls


@pytest.mark.parametrize("system", OURS)
@pytest.mark.parametrize("number", [0, 1], ids=["AlignYourSteps", "GITS"])
def test_schedulers_of_other_networks(bench, system, number):
    """Noise of the published schedules is spaced anew: the run comes out as with steps of their own, and nearer the
    finer they are. Flow models have other noise; there the host would sample it in silence."""
    module, subject, row, calls = bench.module, bench.subjects[system], bench.module.SCHEDULERS[number], []
    if row.on(system) == module.REFUSED:
        with pytest.raises(
            ValueError, match="sigmas of this flow model must start between .* Refine Sigmas"
        ) as refused:
            module.sample(subject, subject.model, 8, calls, row.sigmas(8))
        assert not calls and "\n" not in str(refused.value)
        return
    exact = module.sample(subject, subject.model, 48)
    coarse, fine = (
        module.likeness(module.sample(subject, subject.model, steps, calls, row.sigmas(steps)), exact)
        for steps in (6, 24)
    )
    assert calls and fine > 25 and fine > coarse


def test_refine_sigmas_names_what_is_wrong(bench):
    from cascadevsr.nodes.sampling import RefineSigmas

    rows = {row.node: row for row in bench.module.ROWS}
    for system in OURS[:2]:
        for node in ("ModelSamplingDiscrete", "ModelSamplingSD3"):
            replaced = rows[node].put(bench.subjects[system].model)
            with pytest.raises(ValueError, match=f"^Refine Sigmas: {system} must be sampled with the schedule it was"):
                RefineSigmas.execute(replaced, 1.0, 4, 1.0)
        RefineSigmas.execute(bench.subjects[system].model, 1.0, 4, 1.0)


@pytest.mark.parametrize("system", OURS)
def test_networks_compile_in_one_piece_once_for_a_shape(bench, system):
    """In front of tiles and windows of unequal sizes; graphs are traced, but not turned into machine code here."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    module, subject, calls = bench.module, bench.subjects[system], []
    model = subject.model.clone(disable_dynamic=True)
    options = {"guard_filter_fn": skip_torch_compile_dict}  # as TorchCompileModel, which would go on after a break
    set_torch_compile_wrapper(model=model, backend="eager", fullgraph=True, options=options)
    reset()
    counters.clear()
    found = module.sample(subject, module.cut(subject, model, True, False), 2, calls)
    found_too = module.sample(subject, module.cut(subject, model, False, True), 2, calls)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= len(set(calls))
    for result, parts in ((found, (True, False)), (found_too, (False, True))):
        plain = module.sample(subject, module.cut(subject, subject.model, *parts), 2)
        assert module.likeness(result, plain) > 100
