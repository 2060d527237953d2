"""A discriminator that stands on one of BasicSR's."""

import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import spectral_norm


class AttentiveConvolution(nn.Module):
    """A convolution followed by self-attention over all pixels, which begins as nothing.

    Args:
        convolution: The convolution.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        channels = convolution.out_channels
        inner = max(channels // 8, 1)
        self.convolution = convolution
        self.query = spectral_norm(nn.Conv2d(channels, inner, 1))
        self.key = spectral_norm(nn.Conv2d(channels, inner, 1))
        self.value = spectral_norm(nn.Conv2d(channels, channels, 1))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H_in, W_in) to (B, C, H, W)."""
        x = self.convolution(x)
        query, key, value = (
            each(x).flatten(2).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.gamma * attended.transpose(1, 2).reshape(x.shape)


class DeepUNetDiscriminatorSN(UNetDiscriminatorSN):
    """Real-ESRGAN's U-Net discriminator with self-attention after its third and fourth convolution.

    Args:
        num_in_ch: Channels of the images.
        num_feat: Channels of the first features.
        skip_connection: Whether features of the way down are added on the way up.
    """

    def __init__(self, num_in_ch: int, num_feat: int = 64, skip_connection: bool = True) -> None:
        super().__init__(num_in_ch, num_feat, skip_connection)
        self.conv2 = AttentiveConvolution(self.conv2)
        self.conv3 = AttentiveConvolution(self.conv3)
