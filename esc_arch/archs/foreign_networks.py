"""traiNNer-redux's and neosr's names for networks of the ESC family, with their defaults."""

from typing import Any

from torch import nn

from esc_arch.archs.checks import require_bool
from esc_arch.archs.esc import ESC
from esc_arch.archs.escfp import ESCFP
from esc_arch.archs.escreal import ESCReal
from esc_arch.archs.escrealm import ESCRealM, one_scale
from esc_arch.errors import UserError


def escrealm(
    dim: int = 64,
    pdim: int = 16,
    n_blocks: int = 10,
    num_heads: int = 4,
    upsampler: str = "transpose+conv",
    scale: int | None = None,
    upscaling_factor: int | None = None,
    kernel_size: int = 13,
    conv_blocks: int = 5,
    window_size: int = 32,
    exp_ratio: float = 2,
    attn_type: str = "Auto",
    mid_dim: int = 64,
    unshuffle_mod: bool = False,
) -> ESCRealM:
    """traiNNer-redux's `escrealm`; the options are those of `ESCRealM`."""
    return ESCRealM(**locals())


def escrealm_xl(
    dim: int = 128,
    pdim: int = 32,
    n_blocks: int = 16,
    num_heads: int = 8,
    upsampler: str = "pixelshuffle",
    scale: int | None = None,
    upscaling_factor: int | None = None,
    kernel_size: int = 13,
    conv_blocks: int = 5,
    window_size: int = 32,
    exp_ratio: float = 2,
    attn_type: str = "Auto",
    mid_dim: int = 64,
    unshuffle_mod: bool = False,
) -> ESCRealM:
    """traiNNer-redux's `escrealm_xl`; the options are those of `ESCRealM`."""
    return ESCRealM(**locals())


def esc(
    dim: int = 64,
    pdim: int = 16,
    kernel_size: int = 13,
    n_blocks: int = 5,
    conv_blocks: int = 5,
    window_size: int = 32,
    num_heads: int = 4,
    upscaling_factor: int | None = None,
    exp_ratio: float = 1.25,
    attn_type: str = "Auto",
    is_fp: bool = False,
    use_dysample: bool = True,
    realsr: bool = True,
    scale: int | None = None,
) -> nn.Module:
    """neosr's `esc`: by default the real-world network, not the paper's ESC.

    Args:
        dim: As in `ESC`, and so on.
        is_fp: Whether it is ESCFP; then `realsr` and `use_dysample` must be false.
        use_dysample: Whether DySample upsamples; only if `realsr`.
        realsr: Whether it is ESCReal.
        scale: Another word for `upscaling_factor`.

    Returns:
        An `ESC`, `ESCFP`, `ESCReal` or `ESCRealM`.

    Raises:
        UserError: An option has a value that cannot be.
    """
    require_bool(is_fp=is_fp, use_dysample=use_dysample, realsr=realsr)
    options: dict[str, Any] = {
        "dim": dim,
        "pdim": pdim,
        "kernel_size": kernel_size,
        "n_blocks": n_blocks,
        "conv_blocks": conv_blocks,
        "window_size": window_size,
        "num_heads": num_heads,
        "upscaling_factor": one_scale(upscaling_factor, scale),
        "exp_ratio": exp_ratio,
        "attn_type": attn_type,
    }
    if realsr and is_fp:
        raise UserError("realsr and is_fp are both true; at most one of them can be")
    if use_dysample and not realsr:
        raise UserError("use_dysample is true and realsr false; give use_dysample: false")
    if not realsr:
        return (ESCFP if is_fp else ESC)(**options)
    if use_dysample:
        return ESCReal(use_dysample=True, **options)
    return ESCRealM(upsampler="up+conv+conv", **options)


def esc_light(
    dim: int = 64,
    pdim: int = 16,
    kernel_size: int = 13,
    n_blocks: int = 3,
    conv_blocks: int = 5,
    window_size: int = 32,
    num_heads: int = 4,
    upscaling_factor: int | None = None,
    exp_ratio: float = 1.25,
    attn_type: str = "Auto",
    is_fp: bool = False,
    use_dysample: bool = True,
    realsr: bool = True,
    scale: int | None = None,
) -> nn.Module:
    """neosr's `esc_light`: `esc` with fewer blocks."""
    return esc(**locals())


def esc_large(
    dim: int = 64,
    pdim: int = 16,
    kernel_size: int = 13,
    n_blocks: int = 10,
    conv_blocks: int = 5,
    window_size: int = 32,
    num_heads: int = 4,
    upscaling_factor: int | None = None,
    exp_ratio: float = 2.0,
    attn_type: str = "Auto",
    is_fp: bool = False,
    use_dysample: bool = True,
    realsr: bool = True,
    scale: int | None = None,
) -> nn.Module:
    """neosr's `esc_large`: `esc` with more blocks and wider ConvFFN."""
    return esc(**locals())


def esc_fp(
    dim: int = 48,
    pdim: int = 16,
    kernel_size: int = 13,
    n_blocks: int = 5,
    conv_blocks: int = 5,
    window_size: int = 32,
    num_heads: int = 3,
    upscaling_factor: int | None = None,
    exp_ratio: float = 1.25,
    attn_type: str = "Auto",
    is_fp: bool = True,
    use_dysample: bool = True,
    realsr: bool = False,
    scale: int | None = None,
) -> nn.Module:
    """neosr's `esc_fp`: `esc` with few parameters, which works with `use_dysample: false` alone."""
    return esc(**locals())


# What an option file's `type` names beside the networks themselves.
FOREIGN_NAMES = {
    function.__name__: function
    for function in (escrealm, escrealm_xl, esc, esc_light, esc_large, esc_fp)
}
