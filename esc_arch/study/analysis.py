"""What a network looks at: effective receptive field, local attribution, position bias."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esc_arch.errors import UserError
from esc_arch.ops.bias import relative_position_bias_backward
from esc_arch.study.subjects import Subject

# Shares of the total that the size of a receptive field is given for.
ERF_SHARES = (0.2, 0.3, 0.5, 0.99)


def effective_receptive_field(subject: Subject, pictures: Tensor) -> Tensor:
    """How much the centre of the result depends on each pixel of the input.

    Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks"
    (2016): the absolute gradient of the centre output pixel (sum of its channels), averaged over
    pictures and input channels.

    Args:
        subject: The network.
        pictures: LR pictures (N, 3, H, W), RGB in [0, 1].

    Returns:
        (H, W), in units of output per unit of input, float64.
    """
    height, width = pictures.shape[-2:]
    total = torch.zeros(height, width, dtype=torch.float64)
    for picture in pictures:
        x = picture.unsqueeze(0).requires_grad_()
        out = subject(x)
        scale = out.shape[-1] // width
        centre = out[0, :, height // 2 * scale + scale // 2, width // 2 * scale + scale // 2]
        (gradient,) = torch.autograd.grad(centre.sum(), x)
        total += gradient[0].abs().mean(0).double().cpu()
    return total / len(pictures)


def erf_sizes(erf: Tensor, shares: tuple[float, ...] = ERF_SHARES) -> dict[str, dict[str, float]]:
    """Sizes of the smallest squares around the centre that hold shares of the whole field.

    Args:
        erf: (H, W), not negative.
        shares: Shares of the sum, above 0 and at most 1.

    Returns:
        By share in per cent: `side` of the square in pixels and the `area_ratio` of the square's
        part within the picture to the picture.
    """
    height, width = erf.shape
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    distance = torch.maximum(rows[:, None], columns)
    sums = torch.zeros(int(distance.max()) + 1, dtype=torch.float64)
    sums.index_add_(0, distance.flatten(), erf.double().flatten())
    within = sums.cumsum(0) / sums.sum()
    sizes = {}
    for share in shares:
        # Rounding may leave the last sum a little below 1.
        radius = int((within < share - 1e-12).sum().clamp(max=len(within) - 1))
        area = int((distance <= radius).sum())
        sizes[f"{share:.0%}"] = {"side": 2 * radius + 1, "area_ratio": area / erf.numel()}
    return sizes


@dataclass(frozen=True)
class Attribution:
    """A local attribution map.

    Attributes:
        values: (H, W), what each LR pixel adds to the detected structure; its sum is `detected`
            minus `detected_blurred`, but for the steps being finite.
        detected: The detector on the result for the picture.
        detected_blurred: The detector on the result for the blurred picture.
        result: The super-resolved picture (3, s * H, s * W).
        patch: Top, left and side in SR pixels of the square that the detector looks at.
    """

    values: Tensor
    detected: float
    detected_blurred: float
    result: Tensor
    patch: tuple[int, int, int]

    @property
    def gini(self) -> float:
        """Inequality of the contributions: 0 if all pixels count alike, 1 if one alone does."""
        return gini(self.values.abs())

    @property
    def diffusion_index(self) -> float:
        """(1 - Gini) * 100: the higher, the wider the range of pixels that is used."""
        return (1 - self.gini) * 100


def local_attribution(
    subject: Subject,
    picture: Tensor,
    centre: tuple[int, int],
    side: int = 16,
    sigma: float = 1.2,
    steps: int = 50,
) -> Attribution:
    """Attribute the structure within a square of the result to the pixels of the input.

    Gu and Dong, "Interpreting Super-Resolution Networks with Local Attribution Maps" (CVPR 2021):
    integrated gradients of the detector D (summed magnitude of the image gradient within the
    square) along the path from the blurred to the sharp picture,
    gamma(alpha) = Gaussian of standard deviation (1 - alpha) * sigma, convolved with the picture.
    The integral of dD/dgamma * dgamma/dalpha is summed up at the middle of equal steps; a pixel's
    three channels are added.

    Args:
        subject: The network.
        picture: LR picture (3, H, W), RGB in [0, 1].
        centre: Row and column in LR pixels that the square is centred at, as far as it fits.
        side: Side of the square in SR pixels, at least 2.
        sigma: Standard deviation of the blur in LR pixels.
        steps: Number of steps along the path.

    Returns:
        The map and what belongs to it.

    Raises:
        UserError: The square is larger than the result.
    """
    with torch.no_grad():
        result = subject(picture.unsqueeze(0))[0]
    scale = result.shape[-1] // picture.shape[-1]
    if not 2 <= side <= min(result.shape[-2:]):
        size = f"{result.shape[-1]}x{result.shape[-2]}"
        raise UserError(f"--patch {side}: must be from 2 to the sides of the result, {size}")
    top, left = (
        min(max(0, position * scale + scale // 2 - side // 2), length - side)
        for position, length in zip(centre, result.shape[-2:], strict=True)
    )

    def detect(out: Tensor) -> Tensor:
        square = out[..., top : top + side, left : left + side]
        down = square[..., 1:, :-1] - square[..., :-1, :-1]
        right = square[..., :-1, 1:] - square[..., :-1, :-1]
        # The root has no gradient at 0.
        return (down.square() + right.square() + 1e-12).sqrt().sum()

    values = torch.zeros(picture.shape[-2:], dtype=torch.float64, device=picture.device)
    for step in range(steps):
        middle = gaussian_blur(picture, sigma * (1 - (step + 0.5) / steps))
        before = gaussian_blur(picture, sigma * (1 - step / steps))
        after = gaussian_blur(picture, sigma * (1 - (step + 1) / steps))
        x = middle.unsqueeze(0).requires_grad_()
        (gradient,) = torch.autograd.grad(detect(subject(x)), x)
        values += (gradient[0] * (after - before)).sum(0)
    with torch.no_grad():
        blurred = subject(gaussian_blur(picture, sigma).unsqueeze(0))
    return Attribution(
        values=values.cpu(),
        detected=float(detect(result)),
        detected_blurred=float(detect(blurred)),
        result=result.cpu(),
        patch=(top, left, side),
    )


def gaussian_blur(picture: Tensor, sigma: float) -> Tensor:
    """Blur a picture, repeating its border.

    Args:
        picture: (C, H, W).
        sigma: Standard deviation in pixels; 0 leaves the picture as it is.

    Returns:
        Same shape.
    """
    if sigma == 0:
        return picture
    radius = max(1, math.ceil(4 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device=picture.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(picture.dtype)
    padded = F.pad(picture.unsqueeze(1), (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1)).squeeze(1)


def gini(values: Tensor) -> float:
    """Gini coefficient: the mean absolute difference of all pairs, over twice the mean.

    Args:
        values: Any shape, not negative.

    Returns:
        From 0 (all alike, or all 0) to nearly 1 (one has everything).
    """
    ordered = values.flatten().double().sort().values
    count, total = len(ordered), float(ordered.sum())
    if total == 0:
        return 0.0
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=ordered.device)
    return float(((2 * ranks - count - 1) * ordered).sum()) / (count * total)


def position_biases(network: nn.Module) -> dict[str, Tensor]:
    """The learned position biases of all attentions of a network, as maps.

    It knows the table of ESC, the factors of FlashBias (whose product is averaged over the pairs of
    pixels with the same offset) and the table of Swin transformers.

    Args:
        network: Any network.

    Returns:
        By name of the attention: (heads, 2h - 1, 2w - 1) for windows of h x w; at
        [head, h - 1 + dy, w - 1 + dx] what is added to the score of a key dy rows below and dx
        columns to the right of its query. Empty if there are none.
    """
    maps = {}
    for name, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if "relative_position_bias" in own:
            table = own["relative_position_bias"].detach()
            maps[name] = _square(table)
        elif "flashbias_q" in own:
            factors = own["flashbias_q"].detach(), own["flashbias_k"].detach()
            maps[name] = _mean_by_offset(factors[0] @ factors[1].transpose(-2, -1))
        elif "relative_position_bias_table" in own:
            # Swin counts the offset from key to query.
            table = own["relative_position_bias_table"].detach().t()
            maps[name] = _swin_grid(table, getattr(module, "window_size", None)).flip(-2, -1)
    return {name: grid.float().cpu() for name, grid in maps.items()}


def _square(table: Tensor) -> Tensor:
    side = math.isqrt(table.shape[1])
    return table.view(table.shape[0], side, side)


def _swin_grid(table: Tensor, window_size: Any) -> Tensor:
    if isinstance(window_size, tuple | list) and len(window_size) == 2:
        height, width = (2 * int(side) - 1 for side in window_size)
        if height * width == table.shape[1]:
            return table.reshape(-1, height, width)
    return _square(table.contiguous())


def _mean_by_offset(bias: Tensor) -> Tensor:
    window_size = math.isqrt(bias.shape[-1])
    sums = _square(relative_position_bias_backward(bias, window_size))
    pairs = window_size - torch.arange(1 - window_size, window_size, device=bias.device).abs()
    return sums / (pairs[:, None] * pairs)


def mean_distance(bias: Tensor) -> float:
    """How far attention by position alone would reach.

    Args:
        bias: One head's map (2h - 1, 2w - 1).

    Returns:
        Mean distance in pixels from query to key, weighted by softmax of the map.
    """
    rows = torch.arange(bias.shape[0]) - bias.shape[0] // 2
    columns = torch.arange(bias.shape[1]) - bias.shape[1] // 2
    distance = torch.hypot(rows[:, None].double(), columns.double())
    return float((bias.double().flatten().softmax(0) * distance.flatten()).sum())
