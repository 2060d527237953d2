"""Alpha beside the colours of a picture, so that neither spoils the other."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def fill_hidden(pixels: np.ndarray) -> np.ndarray:
    """Replace the colours below alpha 0, which nobody sees, by their nearest visible ones.

    A network looks at a pixel's neighbours: colours that nobody sees would bleed into the rim of
    what is visible.

    Args:
        pixels: (H, W, C) with alpha last.

    Returns:
        The same with other colours where alpha is 0; alpha as it is.
    """
    hidden = pixels[:, :, -1] == 0
    if not hidden.any() or hidden.all():
        return pixels
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    filled = pixels[rows, columns]
    filled[:, :, -1] = pixels[:, :, -1]
    return filled


def clamp_to_neighbours(alpha: Tensor, lq: Tensor, scale: int) -> Tensor:
    """Keep each value between those of the nine LR pixels around it.

    So what is wholly transparent or wholly opaque stays so to the last bit.

    Args:
        alpha: (B, 1, s * H, s * W).
        lq: (B, 1, H, W).
        scale: Scale s.
    """
    largest, smallest = F.max_pool2d(lq, 3, 1, 1), -F.max_pool2d(-lq, 3, 1, 1)
    upper, lower = (
        bound.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
        for bound in (largest, smallest)
    )
    return alpha.clamp(lower, upper)
