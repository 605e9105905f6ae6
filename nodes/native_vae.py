"""What our VAEs share: a native VAE that owns its streaming and tiling, and answers to lack of memory."""

import contextlib
import logging

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import torch

from ..models.layout.geometry import ClipSize
from ..models.layout.tiles import plan_tiles
from . import host


class NativeVAE(comfy.sd.VAE):
    """A native VAE around one of our networks; `decode` takes LR frames and more through vae_options."""

    def __init__(self, network, state, dtype: torch.dtype, space: int, time: int, disable_dynamic=False):
        with host.quiet("WARNING: No VAE weights detected"):  # true for the host's own VAEs, not for ours
            super().__init__(sd={})
        self.latent_channels, self.latent_dim, self.output_channels = network.config.latent_channels, 3, 3
        self.downscale_ratio = (lambda frames: max(0, (frames + 2 * time - 2) // time), space, space)
        self.upscale_ratio = (lambda frames: max(0, frames * time - time + 1), space, space)
        self.downscale_index_formula = self.upscale_index_formula = (time, space, space)
        self.handles_tiling, self.crop_input = True, False  # any size is padded, nothing is cut off
        self.working_dtypes = list(host.PRECISIONS.values())
        self.device, self.output_device = management.vae_device(), management.intermediate_device()
        self.vae_dtype = dtype
        self.first_stage_model = network.eval().requires_grad_(False).to(dtype)
        management.archive_model_dtypes(network)
        kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = kind(network, load_device=self.device, offload_device=management.vae_offload_device())
        state = {key: value.to(dtype) for key, value in state.items()}
        network.load_state_dict(state, strict=True, assign=self.patcher.is_dynamic())
        self.model_size()

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Give the LATENT entries that stand for LR frames (B, h, w, 3) at `size`; `mode` resizes."""
        raise NotImplementedError

    def _settings(self) -> dict:
        where = {"device": self.device, "dtype": self.vae_dtype}
        return {**where, "progress": host.Progress(), "check_cancelled": host.check_cancelled}

    def _load(self, memory: float) -> int:
        """Load the weights, let the host make room for `memory` bytes, and give the bytes there are."""
        with self._on_device():
            management.load_models_gpu([self.patcher], memory_required=memory)
            return host.free_bytes(self.device)

    def _on_device(self):
        return getattr(management, "cuda_device_context", contextlib.nullcontext)(self.device)

    def _run(self, work, grid: tuple[int, int], sides: list[tuple[int, int]], overlap: int):
        """Run `work(tiles)` with the first of `sides` (rows, columns in cells); out of memory, with the next.

        When the last does not fit either the error says what to do; nothing is left black.
        """
        for number, side in enumerate(sides, 1):
            try:
                with self._on_device():
                    return work(plan_tiles(*grid, *side, min(overlap, min(side) // 2)))
            except Exception as error:  # the host tells out-of-memory errors of all devices from others
                if not management.is_oom(error):
                    raise
                if number == len(sides):
                    raise host.out_of_memory("VAE", side, self.upscale_ratio[-1]) from error
            logging.getLogger(__name__).warning(
                "VAE: out of memory with tiles of %s cells; trying smaller ones", side
            )
            management.soft_empty_cache()
        raise AssertionError("the last side returns or raises")
