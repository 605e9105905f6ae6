"""Measures: closed-form values, and agreement with OpenCV where it is installed."""

import math

import numpy as np
import pytest
import torch
from cascadevsr.models.pixels import metrics


def clip(frames=3, height=48, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, height // 8, width // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").movedim(1, -1)
    return ((0.8 * smooth + 0.2 * torch.rand(smooth.shape, generator=generator)).clamp(0, 1) * 255).byte()


def test_luma_of_black_white_and_both_dtypes():
    ends = metrics.luma(torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 1, 3)).flatten()
    assert ends.tolist() == pytest.approx([16.0, 235.0])
    frames = clip()
    assert torch.allclose(metrics.luma(frames), metrics.luma(frames.double() / 255))


def test_a_known_error_gives_the_known_psnr():
    truth = torch.full((2, 20, 20, 3), 100, dtype=torch.uint8)
    assert metrics.psnr_rgb(truth + 5, truth) == pytest.approx(20 * math.log10(255 / 5))
    luma_error = 5 * 219 / 255
    assert metrics.psnr_y(truth + 5, truth) == pytest.approx(20 * math.log10(255 / luma_error))
    shaved = truth.clone()
    shaved[:, :4], shaved[:, :, -4:] = 0, 0
    assert metrics.psnr_rgb(shaved, truth) > 140 and metrics.ssim_y(shaved, truth) == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 10), (11, 19), (17, 17)])
def test_small_frames_are_measured_where_that_is_possible(height, width):
    frames = torch.rand(2, height, width, 3)
    assert math.isfinite(metrics.psnr_y(frames, 1 - frames))
    assert math.isfinite(metrics.detail_ratio(frames, frames))
    assert math.isnan(metrics.ssim_y(frames, frames)) == (min(height, width) < 11)


def test_detail_ratio_tells_blur_from_noise():
    truth = clip().float() / 255
    blurred = torch.nn.functional.avg_pool2d(truth.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    assert metrics.detail_ratio(truth, truth) == 1 and metrics.detail_ratio(blurred, truth) < 0.7
    assert metrics.detail_ratio((truth + 0.1 * torch.rand_like(truth)).clamp(0, 1), truth) > 1.05


def test_warping_error_follows_the_motion():
    still = clip(1, 40, 40)[0].float() / 255
    frames = torch.stack([still.roll(i, 1) for i in range(3)])  # moves right by one pixel a frame
    flow = torch.zeros(2, 2, 40, 40)
    flow[:, 0] = 1
    assert metrics.warping_error(frames, (flow, -flow)) < 1e-6
    assert metrics.warping_error(frames, (0 * flow, 0 * flow)) > 1
    assert math.isnan(metrics.warping_error(frames[:1], (flow[:0], flow[:0])))
    with pytest.raises(ValueError, match="3 frames need 2 flows"):
        metrics.warping_error(frames, (flow[:1], flow[:1]))


def test_colour_drift_is_counted_beyond_the_reference():
    frames = torch.full((4, 6, 6, 3), 0.5)
    drifting = frames + torch.linspace(0, 0.1, 4).view(4, 1, 1, 1) * torch.tensor([1.0, 0, 0])
    assert metrics.color_drift(frames) == 0
    assert metrics.color_drift(drifting, frames[:, :3, :3]) == pytest.approx(25.5, abs=1e-3)
    assert metrics.color_drift(drifting, drifting) == 0


def test_flicker():
    frames = torch.rand(4, 6, 8, 3)
    assert len(metrics.flicker(frames)) == 3
    assert metrics.flicker(torch.zeros(2, 2, 2, 3)) == [0.0] and metrics.flicker(frames[:1]) == []


def test_clips_of_unequal_size_are_refused():
    with pytest.raises(ValueError, match="equal size are compared; got "):
        metrics.psnr_y(clip(), clip(2))


def test_numbers_agree_with_opencv():
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    result, truth = clip(seed=1), clip()
    kernel = cv2.getGaussianKernel(11, 1.5)

    def blur(plane):
        return cv2.sepFilter2D(plane, -1, kernel, kernel)[5:-5, 5:-5]

    def ssim(a, b):
        m1, m2 = blur(a), blur(b)
        s1, s2, s12 = blur(a * a) - m1 * m1, blur(b * b) - m2 * m2, blur(a * b) - m1 * m2
        top = (2 * m1 * m2 + (0.01 * 255) ** 2) * (2 * s12 + (0.03 * 255) ** 2)
        return (top / ((m1 * m1 + m2 * m2 + (0.01 * 255) ** 2) * (s1 + s2 + (0.03 * 255) ** 2))).mean()

    def luma(frame):
        return 16 + frame.numpy().astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255

    pairs = [(luma(a), luma(b)) for a, b in zip(result, truth, strict=True)]
    expected = np.mean([ssim(a[4:-4, 4:-4], b[4:-4, 4:-4]) for a, b in pairs])
    assert metrics.ssim_y(result, truth) == pytest.approx(expected, abs=1e-9)
    edges = [[np.abs(cv2.Laplacian(plane, cv2.CV_64F)).mean() for plane in pair] for pair in pairs]
    sharp = np.mean([a / b for a, b in edges])
    assert metrics.detail_ratio(result, truth) == pytest.approx(sharp, abs=1e-9)
    psnr = np.mean([cv2.PSNR(a[4:-4, 4:-4], b[4:-4, 4:-4]) for a, b in pairs])
    assert metrics.psnr_y(result, truth) == pytest.approx(psnr, abs=1e-3)

    flow = 3 * torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(2))
    flow = torch.nn.functional.interpolate(flow, truth.shape[1:3], mode="bilinear").float()
    rows, columns = np.mgrid[0:48, 0:64].astype(np.float32)
    dx, dy = flow[0].numpy()
    second = truth[1].numpy().astype(np.float32)
    moved = cv2.remap(second, columns + dx, rows + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ours = metrics.warp(truth[1].float().movedim(-1, 0)[None], flow)[0].movedim(0, -1).numpy()
    assert np.abs(moved - ours).mean() < 0.5  # OpenCV rounds positions to 1/32 px
