"""The networks that can be compared, by name, and what it takes to run one."""

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import yaml
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from esc_arch.errors import UserError
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.ops.attention import ATTN_TYPES, canonical_attn_type
from esc_arch.ops.windows import pad_to_multiple
from esc_arch.study.bench.measure import Prepared
from esc_arch.study.complexity import count_flops, extrapolate_flops
from esc_arch.zoo.params import select_params
from esc_arch.zoo.store import load_state

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALE_KEYWORDS = ("upscaling_factor", "upscale", "up_scale", "scale")

_ESC = dict(
    type="ESC",
    dim=64,
    pdim=16,
    kernel_size=13,
    n_blocks=5,
    conv_blocks=5,
    window_size=32,
    num_heads=4,
    exp_ratio=1.25,
)
_SWIN_LIGHT = dict(
    img_size=64,
    img_range=1.0,
    depths=[6, 6, 6, 6],
    embed_dim=60,
    num_heads=[6, 6, 6, 6],
    mlp_ratio=2,
    upsampler="pixelshuffledirect",
)

# Options as published. A type with a colon is a class of a package that BasicSR does not register.
PRESETS: dict[str, dict[str, Any]] = {
    "ESC": _ESC,
    "ESC_light": {**_ESC, "n_blocks": 3},
    "ESC_FP": {**_ESC, "type": "ESCFP", "dim": 48, "num_heads": 3},
    "ESC_FlashBias": {**_ESC, "attn_type": "FlashBias", "flashbias_rank": 48},
    "ESC_XL": {
        **_ESC,
        "dim": 192,
        "pdim": 48,
        "n_blocks": 8,
        "window_size": 48,
        "num_heads": 12,
        "use_ln": True,
    },
    "ESC_Real": {**_ESC, "type": "ESCReal", "n_blocks": 10, "exp_ratio": 2},
    "SwinIR_light": dict(type="SwinIR", window_size=8, **_SWIN_LIGHT),
    "RCAN": dict(type="RCAN", num_group=10, num_block=20),
    "EDSR": dict(type="EDSR", num_feat=256, num_block=32, res_scale=0.1),
    "EDSR_baseline": dict(type="EDSR", num_feat=64, num_block=16),
    "OmniSR": dict(type="spandrel.architectures.OmniSR:OmniSR", res_num=5),
    "ATD_light": dict(
        type="spandrel.architectures.ATD:ATD",
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
    "PLKSR": dict(type="spandrel.architectures.PLKSR:PLKSR", ccm_type="DCCM"),
    "PLKSR_tiny": dict(
        type="spandrel.architectures.PLKSR:PLKSR",
        ccm_type="DCCM",
        n_blocks=12,
        kernel_size=13,
        use_ea=False,
    ),
    "SRFormer_light": dict(
        type="spandrel_extra_arches.architectures.SRFormer:SRFormer", window_size=16, **_SWIN_LIGHT
    ),
}

# Networks that need whole windows and do not pad by themselves; BasicSR's models do it for them.
PADS_NOT = ("SwinIR",)


@dataclass(frozen=True)
class Spec:
    """One row: a network and how to run it, written NAME[:attn_type][:dtype][:compile].

    Attributes:
        name: A key of `PRESETS`, a registered network, or an option file.
        attn_type: Attention backend, for networks that have one; None leaves it as it is.
        dtype: A key of `DTYPES`.
        compile: Whether torch.compile compiles it.
        weights: Checkpoint to load, or None.
    """

    name: str
    attn_type: str | None = None
    dtype: str = "float32"
    compile: bool = False
    weights: str | None = None

    @property
    def label(self) -> str:
        """What the row is called."""
        name = Path(self.name).stem if _is_option_file(self.name) else self.name
        parts = [name, self.attn_type, self.dtype if self.dtype != "float32" else None]
        return ":".join([p for p in parts if p] + (["compile"] if self.compile else []))

    def kernels(self) -> AbstractContextManager[None]:
        """Switch our CPU kernels off where `Naive` stands for the formulas as written."""
        return cpu_kernels.switched_off() if self.attn_type == "Naive" else nullcontext()

    @property
    def has_attn_type(self) -> bool:
        """Whether the network takes an `attn_type`; not if its package is missing."""
        if _is_option_file(self.name):
            type_name = _read_option_file(self.name)["network_g"]["type"]
        else:
            type_name = PRESETS.get(self.name, {"type": self.name})["type"]
        try:
            return "attn_type" in inspect.signature(find_class(type_name)).parameters
        except UserError:
            return False


def parse_spec(
    text: str,
    attn_type: str | None = None,
    dtype: str = "float32",
    compile_network: bool = False,
    weights: Mapping[str, str] | None = None,
) -> Spec:
    """Read what the user wrote for one row.

    Args:
        text: NAME[:attn_type][:dtype][:compile].
        attn_type: Backend where the text names none; networks without attn_type do without.
        dtype: Type where the text names none.
        compile_network: Whether to compile where the text does not say.
        weights: Checkpoints by NAME.

    Returns:
        The row.

    Raises:
        UserError: There is no such network, or a part after it means nothing.
    """
    name, *parts = text.split(":")
    while parts and not (_is_option_file(name) or _is_known(name)):
        # A colon within a path.
        name = f"{name}:{parts.pop(0)}"
    if _is_option_file(name):
        _read_option_file(name)
    elif not _is_known(name):
        known = [*PRESETS, *ARCH_REGISTRY.keys()]
        close = difflib.get_close_matches(text.split(":")[0], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"one of {', '.join(PRESETS)}"
        raise UserError(f"--models {text}: no such network or option file (.yml): {hint}")
    spec = Spec(name, None, dtype, compile_network, (weights or {}).get(name))
    for part in parts:
        if part in DTYPES:
            spec = dataclasses.replace(spec, dtype=part)
        elif part == "compile":
            spec = dataclasses.replace(spec, compile=True)
        elif part.lower() in (known.lower() for known in ATTN_TYPES):
            spec = dataclasses.replace(spec, attn_type=canonical_attn_type(part))
        else:
            raise UserError(
                f"--models {text}: '{part}' is neither an attn_type ({', '.join(ATTN_TYPES)}), "
                f"nor a dtype ({', '.join(DTYPES)}), nor 'compile'"
            )
    if spec.attn_type is not None and not spec.has_attn_type:
        raise UserError(f"--models {text}: {spec.name} has no attn_type")
    if spec.attn_type is None and attn_type is not None and spec.has_attn_type:
        spec = dataclasses.replace(spec, attn_type=canonical_attn_type(attn_type))
    return spec


def network_options(spec: Spec, scale: int) -> dict[str, Any]:
    """The options of a row's network as in an option file, its `type` and scale among them.

    Args:
        spec: The row.
        scale: Scale.

    Returns:
        Options for `build`.

    Raises:
        UserError: It is an option file of another scale, or its package is missing.
    """
    if _is_option_file(spec.name):
        content = _read_option_file(spec.name)
        if content.get("scale", scale) != scale:
            raise UserError(f"{spec.name} is for x{content['scale']}, not x{scale}")
        options = dict(content["network_g"])
    else:
        options = dict(PRESETS.get(spec.name, {"type": spec.name}))
        options.update(_inferred_options(find_class(options["type"]), scale, options))
    if spec.attn_type is not None:
        options["attn_type"] = spec.attn_type
    return options


def find_class(type_name: str) -> type[nn.Module]:
    """The class of a network.

    Args:
        type_name: A registered name, or `module:class`.

    Returns:
        The class.

    Raises:
        UserError: The package that has it is not installed.
    """
    module_name, colon, class_name = type_name.partition(":")
    if not colon:
        return ARCH_REGISTRY.get(type_name)
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        package = module_name.partition(".")[0].replace("_", "-")
        raise UserError(
            f"{class_name} needs the package {package}: pip install 'esc-arch[bench]' ({error})"
        ) from error


def build(spec: Spec, scale: int) -> nn.Module:
    """Build a row's network, with its weights if there are any, in eval mode on the CPU.

    Args:
        spec: The row.
        scale: Scale.

    Returns:
        The network in float32.

    Raises:
        UserError: It cannot be built, or its weights cannot be read or do not fit.
    """
    options = network_options(spec, scale)
    network_class = find_class(options.pop("type"))
    missing = [
        name
        for name, parameter in inspect.signature(network_class).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in options
    ]
    if missing:
        raise UserError(
            f"{spec.name} has no defaults for {', '.join(missing)}: give it as an option file"
        )
    network = network_class(**options).eval()
    path, key = weights_of(spec)
    if path is not None:
        try:
            network.load_state_dict(select_params(load_state(path), path, key))
        except RuntimeError as error:
            first = " ".join(str(error).split())[:160]
            raise UserError(f"{path} does not fit {spec.name}: {first}") from error
    return network


def weights_of(spec: Spec) -> tuple[str | None, str]:
    """The checkpoint of a row and the key of the weights in it.

    Args:
        spec: The row.

    Returns:
        The path or None, and BasicSR's `param_key_g`.
    """
    key = "params_ema"
    if not _is_option_file(spec.name):
        return spec.weights, key
    paths = _read_option_file(spec.name).get("path") or {}
    pretrained = paths.get("pretrain_network_g")
    if spec.weights is None and pretrained and Path(pretrained).is_file():
        return pretrained, paths.get("param_key_g", "params")
    return spec.weights, key


def flops(spec: Spec, scale: int, width: int, height: int) -> int | None:
    """Multiply-accumulates that fvcore counts for one image, attention as written.

    Args:
        spec: The row; how it is run makes no difference.
        scale: Scale.
        width: Width of the LR image in pixels.
        height: Height of the LR image in pixels.

    Returns:
        The count, of whole windows where the network has them; None if fvcore is missing, cannot
        count the network, or finds that its cost is no line in the number of pixels.
    """
    return _flops(Spec(spec.name, "Naive" if spec.has_attn_type else None), scale, width, height)


@functools.cache
def _flops(spec: Spec, scale: int, width: int, height: int) -> int | None:
    try:
        network = build(spec, scale)
        if spec.attn_type is not None:
            return extrapolate_flops(network, height, width)
        window_size = network_options(spec, scale).get("window_size", 1)
        window_size = max(window_size, getattr(network, "window_size", 1))
        side = math.lcm(16, window_size)
        one, two, four = (
            count_flops(network, rows * side, columns * side)
            for rows, columns in ((1, 1), (1, 2), (2, 2))
        )
    except Exception:
        # fvcore's handlers fail by assertion on shapes that they do not know.
        return None
    if four - two != 2 * (two - one):
        return None
    pixels = (width + -width % window_size) * (height + -height % window_size)
    return one + (two - one) * (pixels - side**2) // side**2


@dataclass(frozen=True)
class NetworkJob:
    """Super-resolving a batch of random images.

    Attributes:
        spec: The row.
        scale: Scale.
        width: Width of the LR image in pixels.
        height: Height of the LR image in pixels.
        batch: Images at a time.
        device: Where, "cpu" or "cuda".
    """

    spec: Spec
    scale: int
    width: int
    height: int
    batch: int
    device: str

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.spec.label} x{self.scale} at {self.width}x{self.height}"

    def prepare(self) -> Prepared:
        """Build the network and an input."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(self.batch, 3, self.height, self.width, generator=generator)
        x = x.to(self.device, DTYPES[self.spec.dtype])
        super_resolver, precision = make_super_resolver(self.spec, self.scale, self.device, x)
        facts = {
            "precision": precision,
            "parameters": sum(p.numel() for p in super_resolver.network.parameters()),
        }

        def run() -> Tensor:
            with self.spec.kernels():
                return super_resolver(x)

        return Prepared(run, facts)


@dataclass
class SuperResolver:
    """A network as it is used: without gradients, the image padded to what the network takes."""

    network: nn.Module
    forward: Any
    multiple: int
    scale: int
    device: str
    autocast: torch.dtype | None

    def __call__(self, x: Tensor) -> Tensor:
        """Map LR images (B, 3, H, W) to (B, 3, s * H, s * W)."""
        height, width = x.shape[-2:]
        kind = torch.device(self.device).type
        with torch.no_grad(), torch.autocast(kind, self.autocast, enabled=bool(self.autocast)):
            out = self.forward(pad_to_multiple(x, self.multiple))
        return out[..., : height * self.scale, : width * self.scale]


def make_super_resolver(
    spec: Spec, scale: int, device: str, sample: Tensor
) -> tuple[SuperResolver, str]:
    """Build a network in its dtype: parameters and images cast, or autocast where that fails.

    Args:
        spec: The row.
        scale: Scale.
        device: Where to put it.
        sample: Images to try it on, in the row's dtype.

    Returns:
        The network as it is used, and its precision in words.
    """
    dtype = DTYPES[spec.dtype]
    network = build(spec, scale).to(device)
    multiple = _multiple(network_options(spec, scale))

    def wrap(autocast: torch.dtype | None) -> SuperResolver:
        forward = torch.compile(network) if spec.compile else network
        return SuperResolver(network, forward, multiple, scale, device, autocast)

    if dtype == torch.float32:
        return wrap(None), spec.dtype
    network.to(dtype)
    cast = wrap(None)
    try:
        cast(sample)
        return cast, spec.dtype
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        # Some networks make float32 masks on the way and cannot be cast.
        network = build(spec, scale).to(device)
        return wrap(dtype), f"{spec.dtype} (autocast)"


def _is_option_file(name: str) -> bool:
    return name.endswith((".yml", ".yaml"))


def _is_known(name: str) -> bool:
    return name in PRESETS or name in ARCH_REGISTRY


def _read_option_file(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--models {path}: cannot be read as an option file: {first}") from error
    network = content.get("network_g") if isinstance(content, dict) else None
    if not isinstance(network, dict) or network.get("type") not in ARCH_REGISTRY:
        raise UserError(f"--models {path}: has no network_g with the type of a registered network")
    return content


def _multiple(options: Mapping[str, Any]) -> int:
    """What the sides of an image must be multiples of."""
    if options["type"] not in PADS_NOT:
        return 1
    default = inspect.signature(find_class(options["type"])).parameters["window_size"].default
    return options.get("window_size", default)


def _inferred_options(
    network_class: type[nn.Module], scale: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Scale and colour channels under the names that a network has for them."""
    parameters = inspect.signature(network_class).parameters
    scale_keyword = next((name for name in SCALE_KEYWORDS if name in parameters), None)
    if scale_keyword is None:
        raise UserError(
            f"{network_class.__name__} has no option for the scale: it upscales nothing"
        )
    colours = [name for name in ("num_in_ch", "num_out_ch") if name in parameters]
    return {scale_keyword: scale, **{name: 3 for name in colours if name not in options}}
