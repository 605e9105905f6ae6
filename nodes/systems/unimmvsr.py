"""UniMMVSR in the host: the transformer as a flow-matching MODEL, the causal video VAE, and their loading.

The sign of the velocity is converted here and nowhere else: the core predicts z_HR - eps as the paper does, the host's
flow models predict eps - z_HR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.ops
import comfy.supported_models_base
import torch

from ...models.layout.pieces import Tile, Window, stream_spans
from ...models.layout.sizes import ClipSize
from ...models.motion.estimation import Motion
from ...models.unimmvsr import checkpoint
from ...models.unimmvsr.dit import DiTConfig, UniMMVSRDiT
from ...models.unimmvsr.references import BUILT_IN_RULE
from ...models.unimmvsr.restorer import cpu_convolutions
from ...models.unimmvsr.vae import (
    SPACE,
    TIME,
    CausalVideoVAE,
    ResizedFrames,
    RestoredFrames,
    VAEConfig,
    piece_decoder,
    piece_encoder,
)
from ..host import services
from ..host.keys import LEVEL_KEY, REFERENCES_KEY
from ..host.model import (
    RestorerModel,
    RestorerNetwork,
    as_native,
    block_progress,
    host_entries,
    reference_cells,
    reference_conds,
    run_of,
    set_precision,
)
from ..host.vae import RestorerVAE, VAELaw
from .base import Loading, System

_LAW = VAELaw(
    space=SPACE,
    time=TIME,
    # Peak bytes per output pixel and frame of a piece in fp32; 153 and 100 were measured on the CPU (640x352).
    decode_bytes=190,
    encode_bytes=120,
    sides=tuple(px // SPACE for px in (1024, 512, 256, 128)),
    overlap=8,
    lengths=(4,),  # 16 frames; the peak does not depend on the clip's length
    spans=stream_spans,
    encode_spans=stream_spans,
    streamed=True,
)


# The transformer


class UniMMVSRFormat(comfy.latent_formats.LatentFormat):
    """Latents of the causal video VAE: 16 channels at unit variance, 8 px and 4 frames per cell."""

    latent_channels = 16
    latent_dimensions = 3
    spacial_downscale_ratio = SPACE
    temporal_downscale_ratio = TIME


class UniMMVSRConfig(comfy.supported_models_base.BASE):
    """How the host builds and samples the network: flow matching without shift, time in 0..1."""

    unet_extra_config = {}
    latent_format = UniMMVSRFormat
    sampling_settings = {"shift": 1.0, "multiplier": 1.0}
    # Measured: 5 KB of activations per latent cell in fp32. The host multiplies by 0.04 or 0.15 MiB per cell.
    memory_usage_factor = 0.12


class HostDiT(RestorerNetwork, UniMMVSRDiT):
    """The transformer with the host's calling convention, layers and sign."""

    def __init__(
        self,
        config: DiTConfig,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any = None,
    ):
        layers = services.layers(operations, dtype, device)
        super().__init__(config, ops=layers, attention=services.attention)
        self.dtype = dtype
        self.to(device=device, dtype=dtype)

    def predict(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | None,
        transformer_options: dict,
        noise_level: torch.Tensor | None = None,
        references: Sequence[torch.Tensor] = (),
        reference_starts: Sequence[int] | None = None,
        **_,
    ):
        """Return eps - z_HR for `x` = noisy latent and LR latent on 2c channels."""
        noisy, lr = x.chunk(2, dim=1)
        level = torch.zeros_like(timestep) if noise_level is None else noise_level
        show = block_progress(transformer_options, x, references)
        run = run_of(transformer_options)
        if references and run is not None and run.changes is None:
            run.changes = self.changes(noisy, timestep, lr, level, references, context, reference_starts)
        return -UniMMVSRDiT.forward(self, noisy, timestep, lr, level, references, context, show, reference_starts)

    def changes(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        lr: torch.Tensor,
        level: torch.Tensor,
        references: Sequence[torch.Tensor],
        context: torch.Tensor | None,
        starts: Sequence[int] | None,
    ) -> list[float]:
        """Measure on the middle latent frame how much each reference changes the prediction, of its deviation."""
        middle = slice(noisy.shape[2] // 2, noisy.shape[2] // 2 + 1)

        def predicted(left: int | None) -> torch.Tensor:
            kept = [number for number in range(len(references)) if number != left]
            given = [references[number] for number in kept]
            begins = None if starts is None else [starts[number] for number in kept]
            one = noisy[:, :, middle], timestep, lr[:, :, middle], level
            return UniMMVSRDiT.forward(self, *one, given, context, None, begins).float()

        whole = predicted(None)
        deviation = whole.std().clamp_min(1e-6)
        return [
            float((whole - predicted(number)).square().mean().sqrt() / deviation) for number in range(len(references))
        ]


class UniMMVSRModel(RestorerModel):
    """Turns conditioning into what the network takes, so that tiles, windows and batching see it too."""

    lr_channels, lr_name = UniMMVSRFormat.latent_channels, "low-resolution latent"

    def __init__(self, model_config: UniMMVSRConfig, device: torch.device | None = None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HostDiT)
        self.memory_usage_factor_conds = ("references",)

    def process_timestep(self, timestep: torch.Tensor, **kwargs):
        """Keep time in 0..1 even where a sampling node set a multiplier of its own."""
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)

    def extra_conds(self, **values):
        """Add the noise level and the references; text goes in only where the weights have a place for it."""
        out = super().extra_conds(**values)
        text = out.get("c_crossattn")
        if text is not None and text.cond.shape[-1] != self.diffusion_model.config.text_width:
            del out["c_crossattn"]
        out["noise_level"] = comfy.conds.CONDRegular(torch.tensor([float(values.get(LEVEL_KEY, 0.0))]))
        if values.get(REFERENCES_KEY):
            out.update(reference_conds(self, values, values["noise"].shape[2], BUILT_IN_RULE))
        return out

    def extra_conds_shapes(self, **values):
        """Tell the memory estimate how many reference cells there are before sampling starts."""
        if not values.get(REFERENCES_KEY):
            return {}
        return {"references": [1, self.latent_format.latent_channels, reference_cells(values)]}


# The VAE


class UniMMVSRVAE(RestorerVAE):
    """The causal video VAE: time is streamed, so memory does not grow with the clip."""

    restores = True

    def __init__(self, config: VAEConfig, state: Mapping[str, torch.Tensor], precision: str, disable_dynamic: bool):
        # fp32 unless asked otherwise: motion search and small residuals suffer in half precision.
        asked = services.PRECISIONS.get(precision, torch.float32)
        device = management.vae_device()
        dtype = asked if management.supports_dtype(device, asked) else torch.float32
        free = precision not in services.PRECISIONS and device.type == "cpu"
        self._convolutions = cpu_convolutions() if free else None
        network = CausalVideoVAE(config, services.layers(comfy.ops.manual_cast, dtype, None))
        super().__init__(network, state, dtype, _LAW, config.latent_channels, disable_dynamic)

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Encode LR frames, resized to `size`."""
        return {"samples": self.encode_clips(frames, size, mode)}

    def piece_encoder(self, frames: torch.Tensor, size: ClipSize, mode: str) -> Callable[[Window, Tile], torch.Tensor]:
        """Give what encodes a piece."""
        clip = ResizedFrames(frames, size, mode, self.device, self.vae_dtype)
        return piece_encoder(self.first_stage_model, clip)

    def piece_decoder(
        self,
        latent: torch.Tensor,
        lr: torch.Tensor | None,
        size: ClipSize,
        lr_weight: float,
        cuts: Sequence[int] = (),
        motion: Motion | None = None,
        detail: float = 1.0,
    ) -> Callable[[Window, Tile], torch.Tensor]:
        """Give what decodes a piece."""
        clip = None if lr is None else self.restored(lr, size, cuts, motion)
        place = self.device, self.vae_dtype
        with services.titled(services.DECODE):
            return piece_decoder(self.first_stage_model, latent, clip, size, lr_weight, *place, cuts, detail)

    def restored(self, lr: torch.Tensor, size: ClipSize, cuts: Sequence[int], motion: Motion | None) -> RestoredFrames:
        """Give LR frames restored at `size`, frame by frame."""
        place = self.device, self.vae_dtype
        return RestoredFrames(
            lr, size, self.first_stage_model.decoder.restore, *place, cuts, motion, self._convolutions
        )

    def frame_layers(self) -> Sequence[torch.nn.Module]:
        """Give what runs once a frame: judging and three steps of restoring it, and completing it, a fifth of the time.

        The first frame finds the motion of those around it, too: these are judged with it.
        """
        decoder = self.first_stage_model.decoder
        return decoder.restore.judge, *decoder.restore.clean.steps, decoder.complete


def preview_factors(config: VAEConfig, state: Mapping[str, torch.Tensor]) -> tuple[list[list[float]], list[float]]:
    """Fit latent -> RGB (-1..1), for the sampler's previews, on flat colours that go through the encoder."""
    vae = CausalVideoVAE(config).eval()  # a plain copy on the CPU: the host's one may not be loaded yet
    vae.load_state_dict(state)
    colours = torch.rand(1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(colours.repeat_interleave(4 * SPACE, -1).repeat_interleave(4 * SPACE, -2))[0]
    cells = latent[0, :, 0, 2::4, 2::4].flatten(1).T  # one cell from the middle of every colour
    design = torch.cat((cells, torch.ones(len(cells), 1)), 1)
    ridge = 1e-3 * len(cells) * torch.eye(design.shape[1])
    solution = torch.linalg.solve(design.T @ design + ridge, design.T @ colours[0, :, 0].flatten(1).T)
    return solution[:-1].tolist(), solution[-1].tolist()


# Loading


def _load_model(release: checkpoint.Release, loading: Loading, disable_dynamic: bool):
    state = host_entries(release.dit)
    settings = UniMMVSRConfig({"config": checkpoint.dit_config(state)})
    set_precision(settings, loading.precision, state)
    patcher = as_native(UniMMVSRModel(settings), state, disable_dynamic)
    factors, bias = preview_factors(checkpoint.vae_config(release.vae), release.vae)
    patcher.model.latent_format.latent_rgb_factors = factors
    patcher.model.latent_format.latent_rgb_factors_bias = bias
    return patcher


def _load_vae(release: checkpoint.Release, loading: Loading, disable_dynamic: bool) -> UniMMVSRVAE:
    config = checkpoint.vae_config(release.vae)
    return UniMMVSRVAE(config, release.vae, loading.precision, disable_dynamic)


SYSTEM = System(
    key="unimmvsr",
    name=checkpoint.NAME,
    holds=checkpoint.HOLDS,
    marks=("dit.patch_out.weight",),
    open_state=lambda state, metadata, path: checkpoint.open_state(state, path),
    open_release=checkpoint.open_release,
    load_model=_load_model,
    load_vae=_load_vae,
    takes_references=True,
    redraws=True,
)
