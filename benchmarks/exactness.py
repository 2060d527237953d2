"""Compare every backend and network with float64: the formula, and the straightforward network.

    python benchmarks/exactness.py --device cuda

prints a table; the exit status is 1 if something is wrong, also where our kernels should have run
and formulas did. Without a GPU, Triton's interpreter runs the GPU kernels, the whole of ESC in some
minutes:

    TRITON_INTERPRET=1 python benchmarks/exactness.py --device cpu --backends Triton \
        --dtype float32 --window-sizes 8 --models ESC --size 40x24
"""

import argparse
import contextlib
import copy
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import esc_arch  # noqa: F401  (registers)
from esc_arch.cli import bench
from esc_arch.errors import UserError
from esc_arch.kernels.cpu import library as cpu_kernels
from esc_arch.ops.attention import BACKENDS, KERNELS, flashbias_attention, naive, window_attention
from esc_arch.study.speed.contenders import DTYPES, Contender, parse_contender
from esc_arch.study.speed.measure import reason
from esc_arch.study.speed.results import Row, save

# Relative errors (L2 norms) that rounding explains. "tf32": float32 with the convolutions that
# cuDNN by default rounds to 10 bits of mantissa.
TOLERANCES = {"float32": 1e-5, "tf32": 2e-3, "float16": 4e-3, "bfloat16": 2e-2}
GRADIENT_TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 4e-2}

HEADS, HEAD_DIM, WINDOWS, RANK = 4, 16, 3, 48

# What must run, forward and backward, where a network is asked for one of our backends: for its
# attention, and for layers by their class.
KERNELS_OF = {
    "Triton": {
        "attention": ("triton_window_attention", "triton_window_attention_backward"),
        "ConvFFN": ("triton_conv_ffn", "triton_conv_ffn_backward"),
        "ConvAttn": ("triton_conv_attn", "triton_conv_attn_backward"),
    },
    "Fused": {
        "attention": ("window_attention", "window_attention_backward"),
        "ConvFFN": ("conv_ffn", "conv_ffn_backward"),
        "ConvAttn": ("conv_attn", "symmetric_conv", "symmetric_conv_weight"),
    },
}

ResultAndGradients = tuple[Tensor, Sequence[Tensor]]


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        path: What was run.
        precision: A key of `TOLERANCES`.
        value: "result" or "gradients".
        relative_error: L2 norm of the difference over that of the reference; None if it did not
            run.
        tolerance: Largest that is right.
        kernels: Which of our kernels ran, and how often.
        note: Why it did not run.
    """

    path: str
    precision: str
    value: str
    relative_error: float | None
    tolerance: float
    kernels: str = ""
    note: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is right; a NaN is not."""
        return self.relative_error is not None and self.relative_error <= self.tolerance


def check_attention(
    device: str, backends: Sequence[str], window_sizes: Sequence[int], dtypes: Sequence[str]
) -> Iterator[Check]:
    """Compare all backends and their gradients with the formula in float64 on the CPU.

    Args:
        device: Where the backends run.
        backends: Names of attention backends.
        window_sizes: Sides of windows in pixels.
        dtypes: Keys of `DTYPES`.

    Yields:
        A check of the result and one of all gradients together, a backend.
    """
    for window_size in window_sizes:
        pixels = window_size**2
        generator = torch.Generator().manual_seed(window_size)
        draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
        *qkv, grad = draw(4, WINDOWS, HEADS, pixels, HEAD_DIM)
        table = draw(HEADS, (2 * window_size - 1) ** 2)
        factors = draw(2, HEADS, pixels, RANK) / RANK**0.25

        def by_table(*inputs: Tensor, name: str, w: int = window_size) -> Tensor:
            return window_attention(*inputs, w, name)

        paths = {name: (functools.partial(by_table, name=name), [*qkv, table]) for name in backends}
        paths["FlashBias"] = (flashbias_attention, [*qkv, *factors])
        for dtype in dtypes:
            references = {}
            for name, (attend, inputs) in paths.items():
                # The reference starts from the rounded inputs: only the arithmetic is compared.
                inputs = [t.to(DTYPES[dtype]) for t in inputs]
                if len(inputs) not in references:
                    formula = functools.partial(_formula, window_size=window_size)
                    references[len(inputs)] = _differentiate(
                        formula, [t.double() for t in inputs], grad
                    )
                yield from _check(
                    f"attention {name}, window {window_size}",
                    dtype,
                    functools.partial(
                        _differentiate,
                        attend,
                        [t.to(device) for t in inputs],
                        grad.to(device, DTYPES[dtype]),
                    ),
                    references[len(inputs)],
                )


def check_networks(
    device: str,
    backends: Sequence[str],
    names: Sequence[str],
    size: tuple[int, int],
    dtypes: Sequence[str],
    compiled: bool,
) -> Iterator[Check]:
    """Compare whole x4 networks and the gradients of their parameters with float64 on the CPU.

    Args:
        device: Where the networks run.
        backends: Names of attention backends.
        names: Networks that have an attn_type.
        size: Width and height of the LR image.
        dtypes: Keys of `DTYPES`. As in use, types other than float32 are cast for results and
            autocast for gradients.
        compiled: Whether to check each network compiled, in place of each of its backends.

    Yields:
        A check of the result and one of all gradients together, a network, backend and precision.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, size[1], size[0], generator=generator)
    on_gpu = device.startswith("cuda")
    precisions = [*dtypes, "tf32"] if on_gpu and "float32" in dtypes else dtypes
    for name in names:
        torch.manual_seed(0)
        network = Contender(name, "Naive").build(4)
        with torch.no_grad():
            for parameter in network.parameters():
                # Parameters that start at zero would hide what they do.
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        weights = copy.deepcopy(network.state_dict())
        network.double()
        expected = network(x.double())
        grad = torch.randn(expected.shape, generator=generator)
        expected_grads = torch.autograd.grad(expected, list(network.parameters()), grad.double())
        reference = (expected.detach(), expected_grads)
        contenders = [Contender(name, backend) for backend in backends]
        if compiled:
            contenders = [Contender(name, "Auto", compile=True)]
        for contender in contenders:
            for precision in precisions:
                yield from _check(
                    f"{contender.label} x4",
                    precision,
                    functools.partial(
                        _run_network, contender, precision, weights, x.to(device), grad.to(device)
                    ),
                    reference,
                    _kernels_needed(network, contender),
                )


def made_for(device: str) -> list[str]:
    """The backends that are made for a device, and `Auto`."""
    elsewhere = set(KERNELS)
    if device == "cpu" and cpu_kernels.is_built():
        elsewhere.remove("Fused")
    if device.startswith("cuda"):
        elsewhere.remove("Triton")
    return [*(name for name in BACKENDS if name not in elsewhere), "Auto"]


def _formula(*inputs: Tensor, window_size: int) -> Tensor:
    """Attention as written, with a table or with FlashBias's two factors."""
    if len(inputs) == 4:
        return naive(*inputs, window_size)
    q, k, v, bias_q, bias_k = inputs
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias_q @ bias_k.mT
    return scores.softmax(-1) @ v


def _differentiate(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> ResultAndGradients:
    """The result without gradients recorded, which may take another path, and the gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    with torch.no_grad():
        result = function(*leaves)
    return result, torch.autograd.grad(function(*leaves), leaves, grad)


def _run_network(
    contender: Contender, precision: str, weights: dict[str, Tensor], x: Tensor, grad: Tensor
) -> ResultAndGradients:
    dtype = DTYPES["float32" if precision == "tf32" else precision]
    network = contender.build(4)
    network.load_state_dict(weights)
    network.to(x.device)
    forward = torch.compile(network) if contender.compile else network
    with _tf32_convolutions(precision == "tf32"):
        network.train()
        autocast = dtype != torch.float32
        with torch.autocast(x.device.type, dtype if autocast else None, enabled=autocast):
            out = forward(x)
        # Gradients in float16 need the scaling that a GradScaler finds; the norm's inverse does.
        scale = 1.0 if dtype != torch.float16 else 1.0 / grad.norm().item()
        grads = torch.autograd.grad(out, list(network.parameters()), (grad * scale).to(out.dtype))
        grads = [g / scale for g in grads]
        network.eval().to(dtype)
        with torch.no_grad():
            result = forward(x.to(dtype))
    return result, grads


@contextlib.contextmanager
def _tf32_convolutions(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class _Watch(TorchDispatchMode):
    """Counts how often each of our operators is called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "esc":
            self.called[operator._schema.name.removeprefix("esc::")] += 1
        return operator(*args, **(kwargs or {}))


def _kernels_needed(network: torch.nn.Module, contender: Contender) -> dict[str, int]:
    """The operators that must run, at least once for each of the network's layers.

    Nothing is known of what compiled networks call.
    """
    layers = Counter(type(module).__name__ for module in network.modules())
    layers["attention"] = sum(hasattr(module, "attn_type") for module in network.modules())
    needed = KERNELS_OF.get(contender.attn_type, {}) if not contender.compile else {}
    return {
        name: layers[layer] for layer, names in needed.items() if layers[layer] for name in names
    }


def _check(
    path: str,
    precision: str,
    compute: Callable[[], ResultAndGradients],
    reference: ResultAndGradients,
    needed: Mapping[str, int] | None = None,
) -> Iterator[Check]:
    tolerances = {"result": TOLERANCES[precision], "gradients": GRADIENT_TOLERANCES[precision]}
    watch = _Watch()
    try:
        # Compiled networks do not run compiled while somebody watches.
        with watch if needed else contextlib.nullcontext():
            result, grads = compute()
        # A kernel that was tried once and found wrong was called, too.
        absent = [name for name, count in (needed or {}).items() if watch.called[name] < count]
        if absent:
            raise UserError(f"formulas ran in place of {', '.join(absent)}")
    except Exception as error:
        for value, tolerance in tolerances.items():
            yield Check(path, precision, value, None, tolerance, note=reason(error))
        return
    kernels = ", ".join(f"{name} {count}" for name, count in sorted(watch.called.items()))
    errors = {
        "result": _relative_error([result], [reference[0]]),
        "gradients": _relative_error(grads, reference[1]),
    }
    for value, tolerance in tolerances.items():
        yield Check(path, precision, value, errors[value], tolerance, kernels)


def _relative_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    difference = torch.stack(
        [(v.detach().cpu().double() - e).norm() for v, e in zip(values, expected, strict=True)]
    )
    return (difference.norm() / torch.stack([e.norm() for e in expected]).norm()).item()


def main() -> int:
    """Compare, print a table and save it.

    Returns:
        1 if something is wrong, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["ESC", "ESC_light", "ESC_FP"]
    text = "networks that have an attn_type (default: ESC ESC_light ESC_FP)"
    parser.add_argument("--models", nargs="*", default=names, metavar="NAME", help=text)
    text = "sides of windows in pixels (default: 8 32 48)"
    windows = [8, 32, 48]
    parser.add_argument(
        "--window-sizes", nargs="*", type=bench.positive, default=windows, help=text
    )
    text = "width and height of the networks' LR image (default: 72x40)"
    parser.add_argument("--size", type=bench.size, default=(72, 40), metavar="WxH", help=text)
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=dtypes)
    text = "attention backends (default: those made for the device, and Auto)"
    parser.add_argument("--backends", nargs="+", choices=[*BACKENDS, "Auto"], help=text)
    text = "check each network compiled, in place of each of its backends"
    parser.add_argument("--compile", action="store_true", help=text)
    bench.add_device_and_output(parser, "bench_check")
    args = parser.parse_args()
    try:
        args.device = bench.checked_device(args.device)
        for name in args.models:
            contender = parse_contender(name)
            if contender.label != name or not contender.has_attn_type:
                raise UserError(f"--models {name}: must be a network's name that has an attn_type")
    except UserError as error:
        parser.error(str(error))
    facts = bench.describe_run(args.device, None)
    backends = args.backends or made_for(args.device)
    rows: list[Row] = []
    for checks in (
        check_attention(args.device, backends, args.window_sizes, args.dtype),
        check_networks(args.device, backends, args.models, args.size, args.dtype, args.compile),
    ):
        for one in checks:
            row = {**asdict(one), "passed": one.passed}
            row["kernels"], row["note"] = row.pop("kernels"), row.pop("note")
            rows.append(row)
            save(args.out, rows, facts)
    bench.finish(args, rows, facts)
    wrong = sum(not row["passed"] for row in rows)
    print(f"{len(rows) - wrong} of {len(rows)} checks passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
