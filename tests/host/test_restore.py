"""Restore Frames, and the detail that Temporal Decode adds to what it restores."""

import pytest
import torch


def motion_of(frames):
    from cascadevsr.nodes.motion import EstimateMotion, LoadFlowModel

    return EstimateMotion.execute(frames, LoadFlowModel.execute("built-in").args[0]).args[0]


def restored(vae, frames, motion=None, **size):
    from cascadevsr.nodes.restore import RestoreFrames

    target = {"target": "exact size", "width": 80, "height": 48, **size}
    return RestoreFrames.execute(vae, frames, target, motion).args[0]


def test_detail_goes_from_restored_frames_to_what_the_latent_adds(vae, clip):
    from cascadevsr.nodes.frames import TemporalDecode

    usual = TemporalDecode.execute(clip.latent, vae, 1.0, 16, 0, clip.frames).args[0]
    none, half, full = (
        TemporalDecode.execute(clip.latent, vae, 1.0, 16, 0, clip.frames, None, detail).args[0]
        for detail in (0.0, 0.5, 1.0)
    )
    assert torch.equal(full, usual) and not torch.allclose(none, full, atol=1e-3)
    inside = (none > 0.01) & (none < 0.99) & (full > 0.01) & (full < 0.99)
    torch.testing.assert_close(half[inside], ((none + full) / 2)[inside], rtol=0, atol=1e-5)
    torch.testing.assert_close(none, restored(vae, clip.frames), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("weight", "with_lr"), [(1.0, False), (0.0, True)])
def test_detail_needs_restored_frames(vae, clip, weight, with_lr):
    from cascadevsr.nodes.frames import TemporalDecode

    with pytest.raises(ValueError, match=r"Temporal Decode: detail below 1 needs .* lr_frames.*got 0.5"):
        TemporalDecode.execute(clip.latent, vae, weight, 16, 0, clip.frames if with_lr else None, None, 0.5)


def test_every_scene_is_restored_as_if_alone_and_motion_may_be_given(vae):
    small = torch.rand(2, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    before, after = torch.nn.functional.interpolate(small, (24, 40), mode="bicubic").clamp(0, 1).movedim(1, -1)
    frames = torch.stack([before] * 4 + [after] * 3)
    whole = restored(vae, frames, height=96, width=160)
    assert whole.shape == (7, 96, 160, 3)
    torch.testing.assert_close(whole[4:], restored(vae, frames[4:], height=96, width=160), rtol=0, atol=1e-6)
    motion = motion_of(frames)
    assert torch.allclose(restored(vae, frames, motion, height=96, width=160), whole, atol=0.02)
    assert restored(vae, frames[:1], width=54, height=38).shape == (1, 38, 54, 3), "one frame, any size"


def test_what_does_not_fit_is_named(core, vae, clip):
    with pytest.raises(ValueError, match="Restore Frames: vae must be the built-in restorer's; got object"):
        restored(object(), clip.frames)
    with pytest.raises(ValueError, match="Restore Frames: motion must be that of frames"):
        restored(vae, clip.frames, motion_of(clip.frames[:3]))
