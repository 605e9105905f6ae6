"""A reference that changes nothing says so, and the others say how much they do."""

import logging

import pytest
import torch


@pytest.fixture
def told(monkeypatch):
    from cascadevsr.nodes.host import progress

    lines = []
    monkeypatch.setattr(progress, "show_text", lambda node, text: lines.append(text))
    return lines


def test_the_words(core, told, caplog):
    from cascadevsr.nodes.host.progress import SamplingProgress

    run = SamplingProgress(1)
    run.tell_references()
    assert told == []
    run.changes = [0.4, 0.011]
    with caplog.at_level(logging.INFO):
        run.tell_references()
    assert told == [
        "reference 2 changes next to nothing: it shows something else, or too little of the clip "
        "(changed by reference 1: 40.0%, reference 2: 1.1%)"
    ]
    assert caplog.records[-1].levelno == logging.WARNING and told[0] in caplog.text
    run.changes = [0.4]
    run.tell_references()
    assert told[-1] == "changed by reference 1: 40.0%"


def test_what_is_measured_is_the_change_by_each(core, worded, scene, ksample, told):
    """As many numbers as references, and what is sampled stays the same to the bit."""
    from cascadevsr.nodes.systems.unimmvsr import HostDiT

    clip, seen = scene(), []
    measured = HostDiT.changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostDiT, "changes", lambda *given: seen.append(measured(*given)) or seen[-1])
        watched = ksample(worded[0], clip, steps=2)["samples"]
    assert len(seen) == 1, "once a run"
    assert len(seen[0]) == 2 and all(change > 0 for change in seen[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostDiT, "changes", lambda *_: [])
        assert torch.equal(ksample(worded[0], clip, steps=2)["samples"], watched)


def test_without_references_nothing_is_said(core, worded, scene, ksample, told):
    ksample(worded[0], scene(references=False))
    assert not [line for line in told if "reference" in line]
