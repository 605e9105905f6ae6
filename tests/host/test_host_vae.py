"""The host's own VAEs behind Cascade Input and Temporal Decode: exact sizes, bounded memory, seams measured."""

import gc

import pytest
import torch

from .base_models import FAMILIES, make_vae

NAMES = list(FAMILIES)


@pytest.fixture(scope="module")
def vaes(core):
    with torch.inference_mode():
        return {name: make_vae(name) for name in NAMES}


def _cascade(vae, target, mode="bilinear", **links):
    from cascadevsr.nodes.frames import CascadeInput

    return CascadeInput.execute(vae, target, mode, **links).args


def _decode(vae, samples, chunk=16, tile=0):
    from cascadevsr.nodes.frames import TemporalDecode

    return TemporalDecode.execute(samples, vae, 1.0, chunk, tile).args[0]


def _smooth(family, frames, height, width):
    """Draw a latent that changes slowly from cell to cell, as those of pictures do."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, family.channels, frames + 2, height + 2, width + 2, generator=generator)
    return torch.nn.functional.avg_pool3d(latent, (3, 3, 3), 1) * 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("count", "size"), [(1, (33, 47)), (10, (64, 96)), (13, (75, 41))])
def test_count_and_size_come_out_exactly(vaes, noise, name, count, size):
    vae, family = vaes[name], FAMILIES[name]
    target = {"target": "exact size", "height": size[0], "width": size[1]}
    latent, low, width, height, length = _cascade(vae, target, frames=noise(count, 24, 32))
    grid = (1 + -(-(count - 1) // family.time), *(-(-side // family.space) for side in size))
    assert tuple(latent["samples"].shape) == (1, family.channels, *grid)
    assert (length, height, width) == (count, *size) and torch.isfinite(latent["samples"]).all()
    frames = _decode(vae, latent)
    assert frames.shape == (count, *size, 3) and frames.min() >= 0 and frames.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_one_piece_is_the_hosts_own_decode_and_encode(core, vaes, noise, name):
    vae, family = vaes[name], FAMILIES[name]
    latent = _smooth(family, 3, 2, 3)
    assert torch.equal(_decode(vae, {"samples": latent}), core.nodes.VAEDecode().decode(vae, {"samples": latent})[0])
    frames = noise(1 + family.time, 2 * family.space, 3 * family.space)
    encoded = _cascade(vae, {"target": "scale", "scale": 1.0}, frames=frames)[0]["samples"]
    assert torch.allclose(encoded, core.nodes.VAEEncode().encode(vae, frames)[0]["samples"], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_latent_of_a_base_model_through_every_target_vae(vaes, restorer, name):
    """Any base model into the built-in restorer, and into the VAE of any other."""
    latent = {"samples": _smooth(FAMILIES[name], 2, 2, 3)}
    count, height, width = 1 + FAMILIES[name].time, 2 * FAMILIES[name].space, 3 * FAMILIES[name].space
    target = {"target": "exact size", "height": 40, "width": 60}
    for vae in (restorer[1], *vaes.values()):
        lr, low, *sizes = _cascade(vae, target, samples=latent, base_vae=vaes[name])
        assert low.shape == (count, height, width, 3) and sizes == [60, 40, count]
        assert lr["samples"].shape[1] == vae.latent_channels
        assert _decode(vae, lr).shape == (count, 40, 60, 3)


def test_a_second_cascade_starts_from_the_exact_size(vaes, noise):
    target = {"target": "exact size", "height": 37, "width": 53}
    first = _cascade(vaes["wan22"], target, frames=noise(6, 16, 24))[0]
    low = _cascade(vaes["ltxv"], {"target": "scale", "scale": 2.0}, samples=first, base_vae=vaes["wan22"])[1]
    assert low.shape == (6, 37, 53, 3)


@pytest.fixture
def pieces(monkeypatch):
    """Let little memory be there: pieces(chunk) makes one piece of a small clip too much."""
    from cascadevsr.nodes.host import host_vae

    def shrink(frame_pixels, sides):
        monkeypatch.setattr(host_vae, "_LEAST_FRAME", frame_pixels)
        monkeypatch.setattr(host_vae, "_SMALL_CLIP", 1)
        monkeypatch.setattr(host_vae, "_SIDES", sides)

    return shrink


def _seam(x, dim, joints):
    """Compare the differences along `dim` at the joints with the others: (t, h, w, c) -> number."""
    steps = x.diff(dim=dim).abs().mean([other for other in range(4) if other != dim])
    at = torch.zeros(len(steps), dtype=torch.bool)
    at[torch.tensor(sorted(joints))] = True
    return float(steps[at].mean() / steps[~at].mean())


@pytest.mark.parametrize("name", NAMES)
def test_no_seam_at_tiles(core, vaes, name):
    from cascadevsr.models.layout.pieces import spread_windows

    vae, family = vaes[name], FAMILIES[name]
    cells = 24 if family.space < 32 else 12
    latent, tile = _smooth(family, 2, cells, cells), 2 * cells // 3
    whole = _decode(vae, {"samples": latent})
    tiled = _decode(vae, {"samples": latent}, tile=tile * family.space)
    overlap = min(64 // family.space, tile // 4)
    edges = {
        edge * family.space - 1
        for window in spread_windows(cells, tile, overlap)
        for edge in (window.start, window.stop)
        if 0 < edge < cells
    }
    assert not torch.equal(whole, tiled)
    for dim in (1, 2):
        assert _seam(tiled, dim, edges) < 1.1 * _seam(whole, dim, edges)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hunyuan"])
def test_no_seam_where_time_is_cut(vaes, name, pieces):
    """Hunyuan's VAE at its smallest takes 20 s for this: left out."""
    from cascadevsr.models.layout import pieces as core

    vae, family = vaes[name], FAMILIES[name]
    latent = {"samples": _smooth(family, 26, 2, 2)}
    whole = _decode(vae, latent)
    pieces(1, (1024,))
    cut = _decode(vae, latent)
    assert cut.shape == whole.shape and not torch.equal(cut, whole)
    spans = core.restarting_spans(26, core.SHORTEST)
    joints = {core.first_frame(span.kept.start, family.time) for span in spans[1:]}
    joints |= {core.first_frame(span.kept.stop, family.time) - 1 for span in spans[:-1]}
    assert _seam(cut, 0, joints) < 1.1 * _seam(whole, 0, joints)
    if name != "ltxv":  # whose decoder looks ahead
        first = family.time * 8 + 1
        assert torch.equal(cut[:first], whole[:first]), "the first span has its whole past"


def _alive():
    """Count the bytes of all tensors there are."""
    storages = {}
    for each in gc.get_objects():
        if type(each) is torch.Tensor and each.numel():
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class _Watched:
    """A VAE that notes the pixels of every piece it is given or gives, and the tensors there are meanwhile."""

    def __init__(self, vae):
        self._vae, self.pixels, self.alive, self._before = vae, [], [], _alive()

    def __getattr__(self, name):
        return getattr(self._vae, name)

    def encode(self, frames):
        self._note(frames)
        return self._vae.encode(frames)

    def decode(self, latent):
        frames = self._vae.decode(latent)
        self._note(frames)
        return frames

    def _note(self, frames):
        self.pixels.append(frames[..., 0].numel())
        self.alive.append(_alive() - self._before)


@pytest.mark.parametrize("name", ["wan21", "ltxv"])
def test_no_piece_is_larger_than_its_share_of_a_chunk(vaes, noise, name, pieces):
    """What a 4K clip meets with 8 million px a frame, a small one meets with as many fewer."""
    vae, chunk, size = _Watched(vaes[name]), 14, (160, 192)
    pieces(1, (64,))
    target = {"target": "exact size", "height": size[0], "width": size[1]}
    from cascadevsr.nodes.host import host_vae

    latent = _cascade(vae, target, frames=noise(17, 24, 32))[0]
    count = len(vae.pixels)
    assert count > 1 and max(vae.pixels) <= size[0] * size[1] * host_vae.CHUNK / host_vae._COPIES
    frames = _decode(vae, latent, chunk)
    assert frames.shape == (17, *size, 3) and len(vae.pixels) > count + 1
    assert max(vae.pixels[count:]) <= size[0] * size[1] * chunk / host_vae._COPIES
    one_chunk, result = 12 * chunk * size[0] * size[1], frames.nbytes
    assert max(vae.alive[:count]) < one_chunk and max(vae.alive[count:]) < result + one_chunk
    assert max(vae.alive[count:]) > result, "the count sees the result"


def test_the_tiles_fit_the_memory_the_host_says_a_vae_needs(vaes, monkeypatch):
    from cascadevsr.nodes.host import host_vae, services

    vae, latent = vaes["wan21"], _smooth(FAMILIES["wan21"], 2, 64, 64)
    need = vae.memory_used_decode((1, 16, 2, 48, 48), vae.vae_dtype)
    monkeypatch.setattr(services, "free_bytes", lambda device: need + 1)
    seen = []
    monkeypatch.setattr(
        vae, "decode", lambda z: seen.append(z.shape) or torch.zeros(1, 5, *(8 * n for n in z.shape[3:]), 3)
    )
    host_vae.decode(vae, latent)
    assert len(seen) == 4 and all(tuple(shape[3:]) == (48, 48) for shape in seen)


def test_bad_input_says_what_to_change(core, vaes, noise):
    from comfy.nested_tensor import NestedTensor

    scale, ltx = {"target": "scale", "scale": 2.0}, vaes["ltxv"]
    packed = {"samples": NestedTensor([torch.zeros(1, 128, 2, 2, 2), torch.zeros(1, 8, 4, 16)])}
    for call in (lambda: _cascade(ltx, scale, samples=packed, base_vae=ltx), lambda: _decode(ltx, packed)):
        with pytest.raises(ValueError, match="video latent alone; got one packed with sound .*Separate AV Latent"):
            call()
    with pytest.raises(ValueError, match=r"base_vae must fit samples \(16 channels expected\)"):
        _cascade(ltx, scale, samples={"samples": torch.zeros(1, 128, 2, 2, 2)}, base_vae=vaes["wan21"])
    with pytest.raises(ValueError, match="samples must have 128 channels; got 48"):
        _decode(ltx, {"samples": torch.zeros(1, 48, 2, 2, 2)})
    with pytest.raises(ValueError, match="must hold one clip; got a batch of 2"):
        _cascade(ltx, scale, samples={"samples": torch.zeros(2, 128, 2, 2, 2)}, base_vae=ltx)
    clip = _cascade(ltx, {"target": "exact size", "height": 64, "width": 64}, frames=noise(9, 16, 16))[0]
    longer = {**clip, "samples": torch.cat((clip["samples"],) * 2, 2)}
    with pytest.raises(ValueError, match=r"room for 25 x 64x64\. .*1 \+ 8 n \(17, 25, 33\).*LTXVCropGuides"):
        _decode(ltx, longer)
    with pytest.raises(ValueError, match="samples must be finite"):
        _cascade(ltx, scale, samples={"samples": torch.full((1, 128, 1, 1, 1), float("nan"))}, base_vae=ltx)
    with pytest.raises(ValueError, match="only a restorer's VAE can use lr_frames"):
        from cascadevsr.nodes.frames import TemporalDecode

        TemporalDecode.execute(clip, ltx, 1.0, 16, 0, noise(9, 16, 16))
