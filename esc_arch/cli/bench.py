"""`basicsr bench`: latency, memory, FLOPs and parameters of networks, side by side."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esc_arch.study.bench.measure import Job
    from esc_arch.study.bench.networks import Spec

HELP = "Measure networks against each other: latency, memory, FLOPs, parameters, PSNR."

OUTPUT_WIDTH, OUTPUT_HEIGHT = 1280, 720
DEFAULT_MODELS = ["ESC", "ESC_light", "ESC_FP", "SwinIR_light"]
DTYPES = ("float32", "bfloat16", "float16")
BASELINE = "SwinIR_light"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `basicsr bench` and of its modes `attention`, `train` and `check`."""
    parser.set_defaults(mode=None)
    _add_model_arguments(parser, DEFAULT_MODELS)
    parser.add_argument(
        "--size",
        nargs="+",
        type=_size,
        metavar="WxH",
        help="sizes of the LR image in pixels (default: those of the paper, for an output of "
        f"{OUTPUT_WIDTH}x{OUTPUT_HEIGHT})",
    )
    parser.add_argument(
        "--scale",
        nargs="+",
        type=int,
        metavar="S",
        help="scales (default: 4 with --size, else 2 3 4)",
    )
    parser.add_argument(
        "--batch", type=_positive, default=1, metavar="N", help="images at a time (default: 1)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile every network with torch.compile"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="checkpoints by model; an option file's own is used where it exists",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        default=Path("datasets/benchmarks/Set5"),
        metavar="DIR",
        help="folder with HR and LR_bicubic/X2.. for the PSNR of models that have weights "
        "(default: %(default)s, if it is there)",
    )
    parser.add_argument("--no-flops", action="store_true", help="do not count FLOPs")
    _add_measuring_arguments(parser, "bench_networks")

    modes = parser.add_subparsers(title="other things to measure", metavar="MODE", dest="mode")
    _add_attention_mode(modes)
    _add_train_mode(modes)
    _add_check_mode(modes)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table and save it.

    Returns:
        The exit status: 1 if `check` found something wrong, else 0.
    """
    from esc_arch.cli.pipeline import import_plugins

    import_plugins()
    args.device = _checked_device(args.device)
    modes = {None: _networks, "attention": _attention, "train": _train, "check": _check}
    return modes[args.mode](args)


def _add_attention_mode(modes: Any) -> None:
    text = "Measure the attention backends alone."
    parser = modes.add_parser("attention", help=text, description=text)
    parser.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        help="attn_types, plain-torch, plain-flash-attn (kernels without a bias; default: all)",
    )
    _add_window_sizes(parser, [8, 16, 32, 48, 64, 96])
    parser.add_argument(
        "--size",
        type=_size,
        default=(96, 96),
        metavar="WxH",
        help="size of the feature map, padded to whole windows (default: 96x96)",
    )
    _add_dtypes(parser)
    parser.add_argument(
        "--grad",
        choices=["no", "yes", "both"],
        default="both",
        help="without gradients, with them, or both (default)",
    )
    parser.add_argument("--heads", type=_positive, default=4, metavar="N", help="(default: 4)")
    parser.add_argument(
        "--head-dim",
        type=_positive,
        default=16,
        metavar="N",
        help="channels of a head (default: 16)",
    )
    _add_measuring_arguments(parser, "bench_attention")


def _add_train_mode(modes: Any) -> None:
    text = "Measure training steps."
    parser = modes.add_parser("train", help=text, description=text)
    _add_model_arguments(parser, ["ESC_light:Naive", "ESC_light", "ESC_light:bfloat16"])
    parser.add_argument("--scale", type=_positive, default=2, metavar="S", help="(default: 2)")
    parser.add_argument(
        "--batch", type=_positive, default=4, metavar="N", help="patches at a time (default: 4)"
    )
    parser.add_argument(
        "--patch",
        type=_positive,
        default=64,
        metavar="N",
        help="side of an LR patch in pixels (default: 64)",
    )
    parser.add_argument("--compile", action="store_true", help="compile every network")
    _add_measuring_arguments(parser, "bench_train")


def _add_check_mode(modes: Any) -> None:
    text = "Compare every backend and network with the float64 reference."
    parser = modes.add_parser("check", help=text, description=text)
    parser.add_argument(
        "--models",
        nargs="*",
        default=["ESC", "ESC_light", "ESC_FP"],
        metavar="NAME",
        help="networks that have an attn_type (default: ESC ESC_light ESC_FP)",
    )
    _add_window_sizes(parser, [8, 32, 48])
    parser.add_argument(
        "--size",
        type=_size,
        default=(72, 40),
        metavar="WxH",
        help="size of the networks' LR image (default: 72x40)",
    )
    _add_dtypes(parser)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="check each network compiled, in place of each of its backends",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda if there)")
    parser.add_argument("--out", type=Path, default=Path("bench_check"), metavar="PREFIX")


def _add_model_arguments(parser: argparse.ArgumentParser, models: list[str]) -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        default=models,
        metavar="MODEL",
        help="what to compare: names of published networks, of any registered network, or option "
        "files; each may be followed by :ATTN_TYPE, :DTYPE and :compile, as in ESC:Naive or "
        f"ESC:bfloat16:compile (default: {' '.join(models)})",
    )
    parser.add_argument(
        "--attn-type",
        metavar="NAME",
        help="attention backend of the networks that have one (default: as the networks choose)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="number type (default: float32)"
    )
    parser.add_argument(
        "--baseline",
        metavar="MODEL",
        help=f"what latency to divide by each other (default: {BASELINE} if there, else the first)",
    )


def _add_measuring_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda if there)")
    parser.add_argument(
        "--repeats",
        type=_positive,
        metavar="N",
        help="timed runs of each, taking turns (default: 5 on the CPU, 30 on CUDA)",
    )
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help="CPU threads (default: as torch chooses)"
    )
    parser.add_argument(
        "--no-process-memory",
        action="store_true",
        help="do not run each in a process of its own for its peak memory; on CUDA the memory of "
        "tensors is measured anyhow",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(out),
        metavar="PREFIX",
        help="files to write: PREFIX.csv, PREFIX.json, and for networks PREFIX.png "
        f"(default: {out})",
    )


def _add_window_sizes(parser: argparse.ArgumentParser, default: list[int]) -> None:
    parser.add_argument(
        "--window-sizes",
        nargs="*",
        type=_positive,
        default=default,
        metavar="W",
        help=f"sides of windows in pixels (default: {' '.join(map(str, default))})",
    )


def _add_dtypes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=["float32", "bfloat16"],
        help="number types (default: float32 bfloat16)",
    )


def _networks(args: argparse.Namespace) -> int:
    from esc_arch.study.bench import networks, quality, report

    specs = _specs(args, _weights(args.weights))
    cases = _cases(args.size, args.scale)
    facts = _facts(args.device, args.threads)
    rows: list[dict[str, Any]] = []
    for scale, (width, height) in cases:
        jobs = [
            networks.NetworkJob(spec, scale, width, height, args.batch, args.device)
            for spec in specs
        ]
        case_rows = []
        for job, measurement in zip(jobs, _measure(args, jobs), strict=True):
            can_run = measurement.error is None
            count = None
            if can_run and not args.no_flops:
                count = networks.flops(job.spec, scale, width, height)
            columns = report.timing_columns(measurement)
            latency = columns["latency_ms"]
            case_rows.append(
                {
                    "model": job.spec.label,
                    "scale": scale,
                    "lr_size": f"{width}x{height}",
                    "batch": args.batch,
                    "precision": measurement.facts.get("precision"),
                    "parameters": measurement.facts.get("parameters"),
                    "gmacs": count and round(count / 1e9, 2),
                    "gflop_per_s": count
                    and latency
                    and round(2e-6 * count * args.batch / latency, 1),
                    **columns,
                    "psnr_db": quality.psnr(job.spec, scale, args.device, args.dataset)
                    if can_run
                    else None,
                }
            )
        report.add_speedups(case_rows, _baseline(args, specs, case_rows))
        rows += [_note_last(row) for row in case_rows]
        # After each case: a run that is stopped leaves what it measured.
        report.save(args.out, rows, facts)
        print(f"\n{report.format_table(case_rows)}\n", flush=True)
    last = [row for row in rows if (row["scale"], row["lr_size"]) == _key(rows[-1])]
    hardware = facts["environment"].get("gpu", facts["environment"]["cpu"])
    title = f"x{last[0]['scale']}, LR {last[0]['lr_size']}, batch {args.batch}, {hardware}"
    report.draw_chart(args.out, last, title)
    _print_files(args.out)
    return 0


def _attention(args: argparse.Namespace) -> int:
    from esc_arch.errors import UserError
    from esc_arch.study.bench import attention, report

    backends = args.backends or list(attention.CONTENDERS)
    for name in backends:
        if name not in attention.CONTENDERS:
            raise UserError(f"--backends {name}: must be one of {', '.join(attention.CONTENDERS)}")
    facts = _facts(args.device, args.threads)
    rows: list[dict[str, Any]] = []
    for window_size in args.window_sizes:
        for dtype in args.dtype:
            for grad in {"no": [False], "yes": [True], "both": [False, True]}[args.grad]:
                jobs = [
                    attention.AttentionJob(
                        name,
                        window_size,
                        dtype,
                        grad,
                        *args.size,
                        args.heads,
                        args.head_dim,
                        args.device,
                    )
                    for name in backends
                ]
                case_rows = []
                for job, measurement in zip(jobs, _measure(args, jobs), strict=True):
                    case_rows.append(
                        {
                            "backend": job.backend,
                            "window_size": window_size,
                            "windows": job.windows,
                            "precision": dtype,
                            "grad": grad,
                            "gmacs": measurement.facts.get("gmacs"),
                            **report.timing_columns(measurement),
                        }
                    )
                report.add_speedups(case_rows, case_rows[0])
                rows += [_note_last(row) for row in case_rows]
                report.save(args.out, rows, facts)
    print(f"\n{report.format_table(rows)}\n")
    _print_files(args.out)
    return 0


def _train(args: argparse.Namespace) -> int:
    from esc_arch.study.bench import report, training

    specs = _specs(args, {})
    facts = _facts(args.device, args.threads)
    jobs = [
        training.TrainingJob(spec, args.scale, args.batch, args.patch, args.device)
        for spec in specs
    ]
    rows = [
        {
            "model": job.spec.label,
            "scale": args.scale,
            "batch": args.batch,
            "patch": args.patch,
            "precision": measurement.facts.get("precision"),
            "parameters": measurement.facts.get("parameters"),
            **report.timing_columns(measurement),
        }
        for job, measurement in zip(jobs, _measure(args, jobs), strict=True)
    ]
    report.add_speedups(rows, _baseline(args, specs, rows))
    rows = [_note_last(row) for row in rows]
    report.save(args.out, rows, facts)
    print(f"\n{report.format_table(rows)}\n")
    _print_files(args.out)
    return 0


def _check(args: argparse.Namespace) -> int:
    from esc_arch.errors import UserError
    from esc_arch.study.bench import check, report
    from esc_arch.study.bench.networks import parse_spec

    for name in args.models:
        spec = parse_spec(name)
        if spec.label != name or not spec.has_attn_type:
            raise UserError(f"--models {name}: must be the name of a network with an attn_type")
    facts = _facts(args.device, None)
    rows = []
    for checks in (
        check.check_attention(args.device, args.window_sizes, args.dtype),
        check.check_networks(args.device, args.models, args.size, args.dtype, args.compile),
    ):
        for result in checks:
            rows.append({**dataclasses.asdict(result), "passed": result.passed})
            report.save(args.out, [_note_last(row) for row in rows], facts)
    rows = [_note_last(row) for row in rows]
    print(f"\n{report.format_table(rows)}\n")
    wrong = sum(not row["passed"] for row in rows)
    print(f"{len(rows) - wrong} of {len(rows)} checks passed")
    _print_files(args.out)
    return 1 if wrong else 0


def _measure(args: argparse.Namespace, jobs: Sequence[Job]) -> list[Any]:
    from esc_arch.study.bench.measure import measure

    on_gpu = args.device.startswith("cuda")
    return measure(
        jobs,
        repeats=args.repeats or (30 if on_gpu else 5),
        warmup=3 if on_gpu else 0,
        process_memory=not args.no_process_memory,
        threads=args.threads,
    )


def _specs(args: argparse.Namespace, weights: dict[str, str]) -> list[Spec]:
    from esc_arch.errors import UserError
    from esc_arch.study.bench.networks import parse_spec

    if args.attn_type is not None:
        from esc_arch.ops.attention import canonical_attn_type

        canonical_attn_type(args.attn_type)
    specs = [
        parse_spec(text, args.attn_type, args.dtype, args.compile, weights) for text in args.models
    ]
    unused = set(weights) - {spec.name for spec in specs}
    if unused:
        raise UserError(f"--weights {min(unused)}=...: is not among --models")
    if args.baseline is not None:
        if args.baseline not in args.models:
            raise UserError(f"--baseline {args.baseline}: is not among --models")
    return specs


def _weights(entries: Sequence[str]) -> dict[str, str]:
    from esc_arch.errors import UserError

    weights = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or not Path(path).is_file():
            raise UserError(f"--weights {entry}: must be NAME=FILE, with a file that exists")
        weights[name] = path
    return weights


def _cases(
    sizes: Sequence[tuple[int, int]] | None, scales: Sequence[int] | None
) -> list[tuple[int, tuple[int, int]]]:
    """(scale, (width, height) of the LR image) of each table."""
    from esc_arch.errors import UserError

    for scale in scales or []:
        if not 1 <= scale <= 8:
            raise UserError(f"--scale {scale}: must be from 1 to 8")
    if sizes:
        return [(scale, size) for scale in scales or [4] for size in sizes]
    # Rounded up for x3, as in the paper: 427x240.
    return [(s, (-(-OUTPUT_WIDTH // s), -(-OUTPUT_HEIGHT // s))) for s in scales or [2, 3, 4]]


def _baseline(
    args: argparse.Namespace, specs: Sequence[Spec], rows: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    if args.baseline is not None:
        return rows[args.models.index(args.baseline)]
    for spec, row in zip(specs, rows, strict=True):
        if spec.name == BASELINE:
            return row
    return rows[0]


def _facts(device: str, threads: int | None) -> dict[str, Any]:
    from esc_arch.study.bench import environment
    from esc_arch.study.bench.measure import set_up_process

    set_up_process(threads)
    facts = {
        "command": environment.command(),
        "environment": environment.describe(device),
        "peaks": environment.peaks(device),
    }
    hardware = facts["environment"]
    print(
        f"{hardware.get('gpu', hardware['cpu'])}, {hardware['threads']} CPU threads, "
        f"torch {hardware['versions']['torch']}; "
        + ", ".join(f"{name} {rate:g}" for name, rate in facts["peaks"].items())
    )
    return facts


def _note_last(row: dict[str, Any]) -> dict[str, Any]:
    """The same row with its remark in the last column."""
    row = dict(row)
    row["note"] = row.pop("note")
    return row


def _key(row: dict[str, Any]) -> tuple[int, str]:
    return row["scale"], row["lr_size"]


def _print_files(prefix: Path) -> None:
    paths = [prefix.with_name(prefix.name + suffix) for suffix in (".csv", ".json", ".png")]
    print("wrote " + ", ".join(str(path) for path in paths if path.exists()))


def _checked_device(device: str | None) -> str:
    import torch

    from esc_arch.errors import UserError

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"--device {device}: must be cpu, cuda or cuda:N")
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise UserError(f"--device {device}: torch finds {torch.cuda.device_count()} GPUs")
    return device


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text}: must be WIDTHxHEIGHT in pixels, e.g. 320x180")
    return int(match[1]), int(match[2])


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)
