"""Pictures of two sizes, worked on in bands of rows: what a resize needs and gives, a part at a time.

Resizing is linear along rows and along columns. Columns are resized by torch; of the rows a band needs those of a
matrix that are its own, and what bands give to a smaller picture adds up. So a large frame is never copied whole, and
bands give the same as the whole, to rounding.
"""

import torch
import torch.nn.functional as F

from .sizes import matrix_support, padded_matrix

_BAND = 1 << 19  # px of the large picture that are worked on at once


class BandedResize:
    """The resizes between a small size and a large one: down with antialiasing, and up, as resize_clip does them."""

    def __init__(self, small: torch.Tensor, large: torch.Tensor):
        """Take two tensors (..., rows, columns) of those sizes."""
        (self.height, self.width), (high, self.wide) = small.shape[-2:], large.shape[-2:]
        self.high = high
        step = max(1, _BAND // self.wide)
        self.bands = [slice(top, min(high, top + step)) for top in range(0, high, step)]
        self._matrices = {
            mode: padded_matrix(self.height, high, high, mode).to(large) for mode in ("bicubic", "bilinear")
        }
        self._down = padded_matrix(high, self.height, self.height, "bicubic").to(large)
        across = padded_matrix(self.width, self.wide, self.wide, "bicubic").to(large)
        narrow = padded_matrix(self.wide, self.width, self.width, "bicubic").to(large)
        self._rows, self._columns = self._down @ self._matrices["bicubic"], (narrow @ across).T

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """Reduce a frame (1, c, H, W)."""
        return sum(self.down_part(x[..., band, :], band) for band in self.bands)

    def down_part(self, part: torch.Tensor, band: slice) -> torch.Tensor:
        """Give what a band adds to the reduced frame (1, c, h, w)."""
        matrix, rows = matrix_support(self._down[:, band].T)
        narrow = F.interpolate(part, (part.shape[-2], self.width), mode="bicubic", antialias=True)
        result = part.new_zeros(*part.shape[:2], self.height, self.width)
        result[..., rows, :] = matrix.T @ narrow
        return result

    def up(self, low: torch.Tensor, band: slice, mode: str = "bicubic") -> torch.Tensor:
        """Enlarge (1, c, h, w) and give a band of it."""
        matrix, rows = matrix_support(self._matrices[mode][band])
        part = matrix @ low[..., rows, :]
        return F.interpolate(part, (part.shape[-2], self.wide), mode=mode, antialias=True)

    def up_flow(self, flow: torch.Tensor, band: slice) -> torch.Tensor:
        """Enlarge a motion and give a band of it, in px of the upscaled frame."""
        ratio = flow.new_tensor([self.wide / self.width, self.high / self.height]).view(1, 2, 1, 1)
        return self.up(flow, band, "bilinear") * ratio

    def there_and_back(self, low: torch.Tensor) -> torch.Tensor:
        """Give D U low."""
        return self._rows @ low @ self._columns


def warp_band(x: torch.Tensor, flow: torch.Tensor, top: int) -> torch.Tensor:
    """Sample a frame (1, c, H, W) bicubically where the flow (1, 2, n, W) of the band from row `top` on leads."""
    rows = torch.arange(top, top + flow.shape[-2], device=flow.device)[:, None] + flow[:, 1]
    columns = torch.arange(flow.shape[-1], device=flow.device) + flow[:, 0]
    grid = torch.stack(((2 * columns + 1) / x.shape[-1] - 1, (2 * rows + 1) / x.shape[-2] - 1), -1)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
