"""What a Wan adapter trains on: base and VAE from diffusers folders, text embeddings, the base as SDEdit's model."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import torch

from ..models.checkpoints import load_state
from .wan_adapter import STEPS, WanAdapter

SPACE = 16  # px: the VAE's 8 times the patch's 2


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Load a WanTransformer3DModel from a diffusers folder, or from its `transformer` sub-folder.

    Written out, because diffusers' own loading asks for a further library (accelerate) for this class.
    """
    WanTransformer3DModel = diffusers_class("WanTransformer3DModel")
    part = _part(folder, "transformer")
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # a base of many billions of weights is never held in fp32
    try:
        base = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(part))
    finally:
        torch.set_default_dtype(usual)
    state = {}
    for file in sorted(part.glob("*.safetensors")):
        for name, value in load_state(file)[0].items():
            exact = any(key in name for key in WanTransformer3DModel._keep_in_fp32_modules)
            state[name] = value.to(torch.float32 if exact else dtype)
    base.load_state_dict(state, assign=True)
    return base.eval()


def load_vae(folder: Path) -> torch.nn.Module:
    """Load an AutoencoderKLWan from a diffusers folder, or from its `vae` sub-folder."""
    vae_class = diffusers_class("AutoencoderKLWan")
    vae = vae_class.from_pretrained(_part(folder, "vae"), low_cpu_mem_usage=False)
    return vae.eval().requires_grad_(False)


def diffusers_class(name: str) -> type:
    """Return a class of diffusers, which is imported here and nowhere else: only adapter training needs it.

    Raises a ValueError that states what is missing, what was found and the remedy.
    """
    try:
        import diffusers

        return getattr(diffusers, name)
    except Exception as error:  # a broken installation raises anything: RuntimeError, AttributeError, OSError ...
        try:
            found = f"diffusers {importlib.metadata.version('diffusers')}"
        except importlib.metadata.PackageNotFoundError:
            found = "no diffusers"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ValueError(
            f"Training: an adapter needs diffusers 0.33 or newer, with its {name}; got {found} ({reason}). "
            f"Run: {sys.executable} -m pip install --upgrade diffusers"
        ) from error


def _part(folder: Path, name: str) -> Path:
    folder = Path(folder)
    inside = folder / name
    found = inside if (inside / "config.json").is_file() else folder
    if not (found / "config.json").is_file():
        raise FileNotFoundError(
            f"Training: the base must be a diffusers folder with {name}/config.json; got {folder}. Nothing is "
            "downloaded: fetch the model first, then name its folder."
        )
    return found


class WanCodec:
    """Frames to latents as the base samples them: zero mean and unit variance by the VAE's own statistics."""

    def __init__(self, vae: torch.nn.Module):
        self.vae = vae
        shape = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(vae.config.latents_mean).view(shape)
        self.deviation = torch.tensor(vae.config.latents_std).view(shape)

    @torch.no_grad()
    def encode(self, clip: torch.Tensor) -> torch.Tensor:
        """(b, 3, t, h, w) in 0..1 -> (b, 16, T, h/8, w/8) float32."""
        place = next(self.vae.parameters())
        latent = self.vae.encode((clip * 2 - 1).to(place)).latent_dist.mode().float()
        return (latent - self.mean.to(latent)) / self.deviation.to(latent)

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent -> (b, 3, t, h, w) in 0..1."""
        place = next(self.vae.parameters())
        z = latent * self.deviation.to(latent) + self.mean.to(latent)
        return ((self.vae.decode(z.to(place)).sample.float() + 1) / 2).clamp(0, 1)

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """(t, 3, h, w) in 0..1 -> (1, 16, T, h/8, w/8)."""
        return self.encode(frames.transpose(0, 1).unsqueeze(0))


class WanBase:
    """The base model, without its adapter, as what redraws clips (see :class:`.sdedit.SDEditTransform`)."""

    def __init__(self, adapter: WanAdapter, codec: WanCodec, text: torch.Tensor):
        self.adapter, self.codec, self.text = adapter, codec, text

    def encode(self, clip: torch.Tensor) -> torch.Tensor:
        """(b, 3, t, h, w) in 0..1 -> latent; sides are padded to the patch."""
        height, width = clip.shape[-2:]
        missing = (0, -width % SPACE, 0, -height % SPACE, 0, 0)
        return self.codec.encode(torch.nn.functional.pad(clip, missing, mode="replicate"))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent -> (b, 3, t, h, w) in 0..1."""
        return self.codec.decode(latent)

    def predict(self, z: torch.Tensor, sigma: float, lr: torch.Tensor, level: float) -> torch.Tensor:
        """Give the clean latent by the base's velocity, eps - z; it needs no LR clip."""
        with self.adapter.bare() as base:
            place = base.patch_embedding.weight
            t = torch.full((len(z),), STEPS * sigma, device=z.device)
            text = self.text.to(place).expand(len(z), -1, -1)
            return z - sigma * base(z.to(place), t, text, return_dict=False)[0].float()


class Texts:
    """Text embeddings from a folder: NAME.safetensors, one tensor (n, width) each, by the name of clip or photograph.

    `null.safetensors` is the empty prompt's. What is not there is zeros (1, width).
    """

    def __init__(self, folder: Path | None, width: int):
        self.folder, self.width = folder, width
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"Training: the text folder must exist; got {folder}. Check --text.")

    def get(self, name: str) -> torch.Tensor:
        """Give the embedding (1, n, width) of a clip."""
        path = None if self.folder is None else Path(self.folder) / f"{Path(name).stem}.safetensors"
        if path is None or not path.is_file():
            return torch.zeros(1, 1, self.width)
        text = next(iter(load_state(path)[0].values())).float()
        text = text if text.ndim == 3 else text.unsqueeze(0)
        if text.shape[-1] != self.width:
            raise ValueError(
                f"Training: text must be {self.width} wide for this base; got {text.shape[-1]} in {path.name}. "
                "Encode the prompts with the base's own text encoder."
            )
        return text

    def null(self) -> torch.Tensor:
        """Give the embedding of the empty prompt."""
        return self.get("null")
