"""The networks that can be compared, by name, and what it takes to build one."""

import dataclasses
import difflib
import functools
import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from esc_arch.archs import NETWORKS
from esc_arch.errors import UserError, nearest_first
from esc_arch.kernels import choose
from esc_arch.ops.attention import ATTN_TYPES, canonical_attn_type
from esc_arch.study.complexity import count_flops
from esc_arch.study.subjects import read_option_file
from esc_arch.zoo.catalogue import PUBLISHED

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALE_KEYWORDS = ("upscaling_factor", "upscale", "up_scale", "scale")

# The option blocks of published checkpoints, under the names of the paper's networks.
FAMILY = {
    "ESC": "ESC_DIV2K_X4",
    "ESC_light": "ESC_light_X4",
    "ESC_FP": "ESC_FP_X4",
    "ESC_XL": "ESC_XL_DF2K_X4_FT",
    "ESC_Real": "ESC_Real_X4_MSE",
}
_SWIN_LIGHT = dict(
    img_size=64,
    img_range=1.0,
    depths=[6, 6, 6, 6],
    embed_dim=60,
    num_heads=[6, 6, 6, 6],
    mlp_ratio=2,
    upsampler="pixelshuffledirect",
)
# Others' networks as their papers have them, of types that BasicSR or `plugin.peers` registers.
PEERS: dict[str, dict[str, Any]] = {
    "SwinIR_light": dict(type="SwinIR", window_size=8, **_SWIN_LIGHT),
    "RCAN": dict(type="RCAN", num_group=10, num_block=20),
    "EDSR": dict(type="EDSR", num_feat=256, num_block=32, res_scale=0.1),
    "EDSR_baseline": dict(type="EDSR", num_feat=64, num_block=16),
    "OmniSR": dict(type="OmniSR", res_num=5),
    "ATD_light": dict(
        type="ATD",
        embed_dim=48,
        depths=[6, 6, 6, 6],
        num_heads=[4, 4, 4, 4],
        window_size=16,
        category_size=128,
        num_tokens=64,
        reducted_dim=8,
        convffn_kernel_size=7,
        mlp_ratio=1,
        upsampler="pixelshuffledirect",
    ),
    "PLKSR": dict(type="PLKSR", ccm_type="DCCM"),
    "SRFormer_light": dict(type="SRFormer", window_size=16, **_SWIN_LIGHT),
}
# What may run a network in the place of PyTorch; `ESC:onnx` is ONNX Runtime.
RUNTIMES = ("onnx", "openvino")
NAMED = (*FAMILY, "ESC_FlashBias", *PEERS)

# Networks that need whole windows and do not pad by themselves; BasicSR's models do it for them.
PADS_NOT = ("SwinIR",)


@dataclass(frozen=True)
class Contender:
    """One row: a network and how to run it, written NAME[:attn_type][:dtype][:compile|runtime].

    Attributes:
        name: One of `NAMED`, a registered network, or an option file.
        attn_type: Attention backend, for networks that have one; None leaves it as it is.
        dtype: A key of `DTYPES`.
        compile: Whether torch.compile compiles it.
        runtime: One of `RUNTIMES` in the place of PyTorch, in float32 on the CPU.
    """

    name: str
    attn_type: str | None = None
    dtype: str = "float32"
    compile: bool = False
    runtime: str | None = None

    @property
    def label(self) -> str:
        """What the row is called."""
        name = Path(self.name).stem if _is_option_file(self.name) else self.name
        dtype = self.dtype if self.dtype != "float32" else None
        parts = [name, self.attn_type, dtype, self.runtime]
        return ":".join([p for p in parts if p] + (["compile"] if self.compile else []))

    @property
    def has_attn_type(self) -> bool:
        """Whether the network takes an `attn_type`; not if its package is missing."""
        try:
            network_class = ARCH_REGISTRY.get(_block(self.name)["type"])
        except UserError:
            return False
        return "attn_type" in inspect.signature(network_class).parameters

    def kernels(self) -> AbstractContextManager[None]:
        """Switch our CPU kernels off where `Naive` stands for the formulas as written."""
        return choose.switched_off() if self.attn_type == "Naive" else nullcontext()

    def options(self, scale: int) -> dict[str, Any]:
        """The network's options as in an option file, its `type` and scale among them.

        Raises:
            UserError: It is an option file of another scale, or its package is missing.
        """
        options = _block(self.name)
        if _is_option_file(self.name):
            own = read_option_file(self.name, "--models").get("scale", scale)
            if own != scale:
                raise UserError(f"{self.name} is for x{own}, not x{scale}")
        else:
            options.update(_inferred_options(options, scale))
        if self.attn_type is not None:
            options["attn_type"] = self.attn_type
        return options

    def build(self, scale: int) -> nn.Module:
        """Build the network with random weights, in eval mode and float32 on the CPU.

        Raises:
            UserError: It cannot be built.
        """
        options = self.options(scale)
        network_class = ARCH_REGISTRY.get(options.pop("type"))
        missing = [
            name
            for name, parameter in inspect.signature(network_class).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and name not in options
        ]
        if missing:
            raise UserError(
                f"{self.name} has no defaults for {', '.join(missing)}: give it as an option file"
            )
        torch.manual_seed(0)
        return network_class(**options).eval()

    def multiple(self, scale: int) -> int:
        """What the sides of an LR image must be multiples of."""
        options = self.options(scale)
        if options["type"] not in PADS_NOT:
            return 1
        default = (
            inspect.signature(ARCH_REGISTRY.get(options["type"])).parameters["window_size"].default
        )
        return options.get("window_size", default)


def parse_contender(
    text: str, attn_type: str | None = None, dtype: str = "float32", compile_network: bool = False
) -> Contender:
    """Read what the user wrote for one row.

    Args:
        text: NAME[:attn_type][:dtype][:compile], or NAME:onnx, NAME:openvino.
        attn_type: Backend where the text names none; networks without attn_type do without.
        dtype: Type where the text names none.
        compile_network: Whether to compile where the text does not say.

    Returns:
        The row.

    Raises:
        UserError: There is no such network, or a part after it means nothing.
    """
    name, *parts = text.split(":")
    while parts and not (_is_option_file(name) or _is_known(name)):
        # A colon within a path.
        name = f"{name}:{parts.pop(0)}"
    if not _is_option_file(name) and not _is_known(name):
        known = [*NAMED, *ARCH_REGISTRY.keys()]
        close = difflib.get_close_matches(text.split(":")[0], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"one of {', '.join(NAMED)}"
        raise UserError(f"--models {text}: no such network or option file (.yml): {hint}")
    _block(name)
    if any(part in RUNTIMES for part in parts):
        return _in_runtime(text, name, parts, dtype, compile_network)
    contender = Contender(name, None, dtype, compile_network)
    for part in parts:
        if part in DTYPES:
            contender = dataclasses.replace(contender, dtype=part)
        elif part == "compile":
            contender = dataclasses.replace(contender, compile=True)
        elif part.lower() in (known.lower() for known in ATTN_TYPES):
            contender = dataclasses.replace(contender, attn_type=canonical_attn_type(part))
        else:
            raise UserError(
                f"--models {text}: '{part}' is neither an attn_type ({', '.join(ATTN_TYPES)}), "
                f"nor a dtype ({', '.join(DTYPES)}), nor 'compile', nor a runtime "
                f"({', '.join(RUNTIMES)})"
            )
    if contender.attn_type is not None and not contender.has_attn_type:
        raise UserError(f"--models {text}: {contender.name} has no attn_type")
    if contender.attn_type is None and attn_type is not None and contender.has_attn_type:
        contender = dataclasses.replace(contender, attn_type=canonical_attn_type(attn_type))
    return contender


def _in_runtime(
    text: str, name: str, parts: list[str], dtype: str, compile_network: bool
) -> Contender:
    if len(parts) > 1 or dtype != "float32" or compile_network:
        raise UserError(
            f"--models {text}: '{parts[-1]}' runs what is exported in float32: no attn_type, dtype "
            "or compile goes with it"
        )
    network = _block(name)["type"]
    if network not in NETWORKS:
        raise UserError(
            f"--models {text}: {network} is not exported; one of {', '.join(NETWORKS)} is needed"
        )
    return Contender(name, runtime=parts[0])


@functools.cache
def flops(name: str, scale: int, width: int, height: int) -> int | None:
    """Multiply-accumulates of a network for one image, as the paper counts, attention as written.

    Args:
        name: A contender's.
        scale: Scale.
        width: Width of the LR image in pixels.
        height: Height of the LR image in pixels.

    Returns:
        The count, at the size to which the image is padded; None where it cannot be counted.
    """
    contender = Contender(name)
    if contender.has_attn_type:
        contender = dataclasses.replace(contender, attn_type="Naive")
    multiple = contender.multiple(scale)
    try:
        network = contender.build(scale)
        return count_flops(network, height + -height % multiple, width + -width % multiple)
    except Exception:
        # A network may do what tensors without values cannot, such as look at one.
        return None


def _block(name: str) -> dict[str, Any]:
    """A copy of a network's options, as far as its name tells them."""
    if _is_option_file(name):
        network_g = read_option_file(name, "--models")["network_g"]
        if network_g.get("type") not in ARCH_REGISTRY:
            kind = network_g.get("type")
            names = nearest_first(kind, ARCH_REGISTRY.keys())
            raise UserError(
                f"--models {name}: network_g: type: {kind!r}: no such network is registered; "
                f"{names}"
            )
        return dict(network_g)
    if name == "ESC_FlashBias":
        return {**_block("ESC"), "attn_type": "FlashBias", "flashbias_rank": 48}
    if name in FAMILY:
        return dict(PUBLISHED[FAMILY[name]].network_g)
    return dict(PEERS.get(name, {"type": name}))


def _inferred_options(options: dict[str, Any], scale: int) -> dict[str, Any]:
    """Scale and colour channels under the names that a network has for them."""
    parameters = inspect.signature(ARCH_REGISTRY.get(options["type"])).parameters
    keyword = next((name for name in SCALE_KEYWORDS if name in parameters), None)
    if keyword is None:
        raise UserError(f"{options['type']} has no option for the scale: it upscales nothing")
    colours = [name for name in ("num_in_ch", "num_out_ch") if name in parameters]
    return {keyword: scale, **{name: 3 for name in colours if name not in options}}


def _is_option_file(name: str) -> bool:
    return name.endswith((".yml", ".yaml"))


def _is_known(name: str) -> bool:
    return name in NAMED or name in ARCH_REGISTRY
