"""Frames that the sequence decoder computes once each are those of the whole clip."""

from dataclasses import replace

import pytest
import torch
from cascadevsr.models.layout.pieces import Window, plan_tiles
from cascadevsr.models.layout.sizes import ClipSize
from cascadevsr.models.layout.streams import decode_frames
from cascadevsr.models.mgld_vsr import decoder, vae
from cascadevsr.models.mgld_vsr.vae import EnlargedClip, frame_decoder

SMALL = vae.VAEConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1)


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    network = vae.Autoencoder(vae.FirstStage(SMALL), decoder.SequenceVAE(replace(SMALL, sequence=True))).eval()
    for key, each in network.named_parameters():
        each.requires_grad_(False)
        if key.endswith("temporal_alpha"):
            each.uniform_(0.3, 0.7)
        elif each.ndim > 1:
            each.normal_().mul_(each[0].numel() ** -0.5)
    return network.double()  # in which the order of sums does not show


PLACE = torch.device("cpu"), torch.float64


def clip_of(frames, rows=4, columns=6):
    draw = torch.Generator().manual_seed(frames)
    return torch.randn(1, 4, frames, rows, columns, generator=draw), torch.rand(frames, 8, 12, 3, generator=draw)


@pytest.mark.parametrize("frames", [1, 2, 15])
@pytest.mark.parametrize("weight", [1.0, 0.4, 0.0])
def test_each_frame_is_that_of_the_whole_clip(autoencoder, frames, weight):
    z, low = clip_of(frames)
    lr = EnlargedClip(low, ClipSize(frames, 32, 48))
    network, whole = autoencoder.sequence, plan_tiles(4, 6, 4, 6, 0)[0]
    with torch.inference_mode():
        features = network.features(lr.read(Window(0, frames), whole).double()) if weight else None
        wanted = network.decode(z.double(), features, weight)
        found = torch.cat(list(frame_decoder(autoencoder, z, lr, weight, *PLACE)(whole)), 2)
    assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-12 * wanted.abs().max()


def test_no_frame_is_computed_twice_and_few_are_held(autoencoder):
    z, low = clip_of(20)
    lr, seen, given = EnlargedClip(low, ClipSize(20, 32, 48)), [], 0
    hook = autoencoder.sequence.decoder.conv_out.register_forward_hook(lambda layer, x, y: seen.append(len(y)))
    decode = frame_decoder(autoencoder, z, lr, 1.0, *PLACE)
    entered = autoencoder.sequence.decoder.conv_in.register_forward_hook(lambda *_: ahead.append(len(seen)))
    ahead = []
    for frame in decode(plan_tiles(4, 6, 4, 6, 0)[0]):
        given += frame.shape[2]
    hook.remove()
    entered.remove()
    assert given == sum(seen) == 20
    reach = 1 + 2 * len(SMALL.ch_mult)  # convolutions over frames
    assert [max(0, number - reach) for number in range(20)] == ahead


def test_tiles_of_frames_are_fused_and_cropped(autoencoder):
    z, low = clip_of(3, 6, 8)
    lr, tiles = EnlargedClip(low, ClipSize(3, 45, 61)), plan_tiles(6, 8, 4, 4, 2)
    decode = frame_decoder(autoencoder, z, lr, 1.0, *PLACE)
    ticks = []
    with torch.inference_mode():
        found = decode_frames(decode, torch.zeros(3, 45, 61, 3), tiles, 8, lambda *tick: ticks.append(tick[:2]))
    assert ticks == [(done + 1, 3 * len(tiles)) for done in range(3 * len(tiles))]
    assert found.min() >= 0 and found.max() <= 1
    first = torch.cat(list(decode(tiles[0])), 2)[0, :, :, :8, :8].clamp(-1, 1)
    assert torch.allclose(found[:, :8, :8], (first.float() / 2 + 0.5).permute(1, 2, 3, 0), atol=1e-6), (
        "no other tile is here"
    )


def test_frames_of_the_first_stage_do_not_meet(autoencoder):
    torch.manual_seed(1)
    alone, (z, _) = vae.Autoencoder(vae.FirstStage(SMALL), None).eval(), clip_of(3)
    with torch.inference_mode():
        decode = frame_decoder(alone, z, None, 1.0, torch.device("cpu"), torch.float32)
        found = torch.cat(list(decode(plan_tiles(4, 6, 4, 6, 0)[0])), 2)
        assert torch.allclose(found, alone.first_stage.decode(z), atol=1e-5)


def test_frames_that_spans_share_are_enlarged_once(monkeypatch):
    low, size, whole, counted = clip_of(9)[1], ClipSize(9, 32, 48), plan_tiles(4, 6, 4, 6, 0)[0], []
    resize = vae.resize_clip
    monkeypatch.setattr(vae, "resize_clip", lambda clip, *a: counted.append(clip.shape[2]) or resize(clip, *a))
    lr = EnlargedClip(low, size)
    spans = [Window(0, 5), Window(3, 8), Window(4, 9)]
    found = [lr.read(span, whole).clone() for span in spans]
    assert sum(counted) == 9
    for span, part in zip(spans, found, strict=True):
        assert torch.equal(part, EnlargedClip(low, size).read(span, whole))


def test_frames_are_enlarged_on_the_device():
    low, whole = clip_of(2)[1], plan_tiles(4, 6, 4, 6, 0)[0]
    found = EnlargedClip(low, ClipSize(2, 32, 48), device="meta").read(Window(0, 2), whole)
    assert found.is_meta and found.shape == (1, 3, 2, 32, 48)
