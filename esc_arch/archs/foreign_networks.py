"""traiNNer-redux's and neosr's names for networks of the ESC family, with their defaults."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from esc_arch.archs.checks import require_bool
from esc_arch.archs.esc import ESC
from esc_arch.archs.escfp import ESCFP
from esc_arch.archs.escreal import ESCReal
from esc_arch.archs.escrealm import ESCRealM, one_scale
from esc_arch.errors import UserError


def with_defaults(
    network: Callable[..., nn.Module], name: str, description: str, **defaults: Any
) -> Callable[..., nn.Module]:
    """A network under another name: the same options in the same order, some other defaults.

    Args:
        network: The network.
        name: Its other name.
        description: Its docstring.
        **defaults: Those that differ.
    """
    signature = inspect.signature(network)
    parameters = [
        each.replace(default=defaults.get(each.name, each.default))
        for each in signature.parameters.values()
    ]

    def build(*args: Any, **options: Any) -> nn.Module:
        bound = build.__signature__.bind(*args, **options)
        bound.apply_defaults()
        return network(**bound.arguments)

    build.__signature__ = signature.replace(parameters=parameters)
    build.__name__ = build.__qualname__ = name
    build.__doc__ = description
    return build


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


escrealm = with_defaults(
    ESCRealM, "escrealm", "traiNNer-redux's `escrealm`; the options are those of `ESCRealM`."
)
escrealm_xl = with_defaults(
    ESCRealM,
    "escrealm_xl",
    "traiNNer-redux's `escrealm_xl`; the options are those of `ESCRealM`.",
    dim=128,
    pdim=32,
    n_blocks=16,
    num_heads=8,
    upsampler="pixelshuffle",
)
esc_light = with_defaults(
    esc, "esc_light", "neosr's `esc_light`: `esc` with fewer blocks.", n_blocks=3
)
esc_large = with_defaults(
    esc,
    "esc_large",
    "neosr's `esc_large`: `esc` with more blocks and wider ConvFFN.",
    n_blocks=10,
    exp_ratio=2.0,
)
esc_fp = with_defaults(
    esc,
    "esc_fp",
    "neosr's `esc_fp`: few parameters; it works with `use_dysample: false` alone.",
    dim=48,
    num_heads=3,
    is_fp=True,
    realsr=False,
)

# What an option file's `type` names beside the networks themselves.
FOREIGN_NAMES = {
    network.__name__: network
    for network in (escrealm, escrealm_xl, esc, esc_light, esc_large, esc_fp)
}
