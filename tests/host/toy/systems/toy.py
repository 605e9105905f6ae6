"""The toy in the host: all that a fourth system needs besides its networks."""

import comfy.latent_formats
import comfy.model_base
import comfy.ops
import comfy.supported_models_base
import torch

from ...models.checkpoints import load_state, strip_prefix
from ...models.layout.pieces import frames_of, plain_spans
from ...models.layout.sizes import pad_clip, padded_size, resize_clip
from ...models.toy.networks import CHANNELS, SPACE, ToyNet, ToyVAE
from ..host import services
from ..host.model import RestorerModel, RestorerNetwork, as_native, set_precision
from ..host.vae import RestorerVAE, VAELaw
from .base import System, TileSizes, WindowSize

_LAW = VAELaw(SPACE, 1, 100, 100, (32,), 4, (2, 1), plain_spans, plain_spans)


class ToyFormat(comfy.latent_formats.LatentFormat):
    latent_channels, latent_dimensions = CHANNELS, 3
    spacial_downscale_ratio, temporal_downscale_ratio = SPACE, 1


class ToyConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}
    latent_format = ToyFormat
    sampling_settings = {"shift": 1.0, "multiplier": 1.0}
    memory_usage_factor = 0.1


class HostToy(RestorerNetwork, ToyNet):
    def __init__(self, dtype=None, device=None, operations=None, **_):
        super().__init__(services.layers(operations, dtype, device))
        self.dtype = dtype

    def predict(self, x, timestep, context, transformer_options, **_):
        return ToyNet.forward(self, *x.chunk(2, 1), timestep)


class ToyModel(RestorerModel):
    lr_channels, lr_name = CHANNELS, "toy latent"

    def __init__(self, config):
        super().__init__(config, comfy.model_base.ModelType.FLOW, unet_model=HostToy)


class ToyRestorerVAE(RestorerVAE):
    def __init__(self, state, disable_dynamic):
        network = ToyVAE(services.layers(comfy.ops.manual_cast, torch.float32, None))
        super().__init__(network, state, torch.float32, _LAW, CHANNELS, disable_dynamic)

    def lr_latent(self, frames, size, mode):
        return {"samples": self.encode_clips(frames, size, mode)}

    def piece_encoder(self, frames, size, mode):
        clip = resize_clip(frames.movedim(-1, 0)[None] * 2 - 1, size.height, size.width, mode)
        clip = pad_clip(clip, padded_size(size, SPACE, 1))[0].movedim(0, 1)
        encode = self.first_stage_model.encode
        return lambda frames, tile: encode(clip[frames.span][tile.scaled(SPACE).region]).movedim(1, 0)[None]

    def piece_decoder(self, latent, lr, size, lr_weight):
        def decode(window, tile):
            cells = latent[0, :, window.span][tile.region].movedim(0, 1)
            return frames_of(self.first_stage_model.decode(cells).movedim(1, 0)[None])

        return decode


def _load_model(state, loading, disable_dynamic):
    settings = ToyConfig({})
    set_precision(settings, loading.precision)
    return as_native(ToyModel(settings), strip_prefix(state, "toy.net."), disable_dynamic)


SYSTEM = System(
    key="toy",
    name="Toy",
    holds="entries toy.*",
    marks=("toy.net.mix.weight",),
    open_state=lambda state, metadata, path: state,
    open_release=lambda path: load_state(path)[0],
    load_model=_load_model,
    load_vae=lambda state, loading, disable: ToyRestorerVAE(strip_prefix(state, "toy.vae."), disable),
    licence="Toy: no rights reserved.",
    tiles=TileSizes(((64, 32),), 8),
    windows=WindowSize(4, 2),
)
