"""`basicsr bench`: latency, memory, FLOPs and parameters of networks, side by side."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esc_arch.study.speed.contenders import Contender
    from esc_arch.study.speed.measure import Job

HELP = "Measure networks against each other: latency, memory, FLOPs, parameters."

DEFAULT_MODELS = ["ESC", "ESC_light", "ESC_FP", "SwinIR_light"]
DTYPES = ("float32", "bfloat16", "float16")
BASELINE = "SwinIR_light"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `basicsr bench` and of `basicsr bench train`."""
    parser.set_defaults(mode=None)
    _add_models(
        parser,
        DEFAULT_MODELS,
        " Ours run in other runtimes on the CPU as ESC:onnx (ONNX Runtime) and ESC:openvino.",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        type=size,
        metavar="WxH",
        help="sizes of the LR image in pixels (default: those of the paper, for an output of "
        "1280x720)",
    )
    text = "scales (default: 4 with --size, else 2 3 4)"
    parser.add_argument("--scale", nargs="+", type=int, metavar="S", help=text)
    _add_number(parser, "--batch", 1, "images at a time")
    parser.add_argument("--no-flops", action="store_true", help="do not count FLOPs")
    text = "record the work of each in a CUDA graph, and time its replays"
    parser.add_argument("--cuda-graphs", action="store_true", help=text)
    add_measuring(parser, "bench_networks")

    modes = parser.add_subparsers(title="other things to measure", metavar="MODE", dest="mode")

    text = "Measure training steps."
    train = modes.add_parser("train", help=text, description=text)
    _add_models(train, ["ESC_light:Naive", "ESC_light", "ESC_light:bfloat16"])
    _add_number(train, "--scale", 2, "scale")
    _add_number(train, "--batch", 4, "patches at a time")
    _add_number(train, "--patch", 64, "side of an LR patch in pixels")
    add_measuring(train, "bench_train")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table and save it.

    Returns:
        0.
    """
    from esc_arch.cli.pipeline import import_plugins

    import_plugins()
    args.device = checked_device(args.device)
    return _train(args) if args.mode == "train" else _networks(args)


def _add_models(parser: argparse.ArgumentParser, models: list[str], more: str = "") -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        default=models,
        metavar="MODEL",
        help="what to compare: names of published networks, of any registered network, or option "
        "files; each may be followed by :ATTN_TYPE, :DTYPE and :compile, as in ESC:Naive or "
        f"ESC:bfloat16:compile.{more} (default: {' '.join(models)})",
    )
    parser.add_argument(
        "--attn-type",
        metavar="NAME",
        help="attention backend of the networks that have one (default: as the networks choose)",
    )
    text = "number type (default: float32)"
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help=text)
    parser.add_argument("--compile", action="store_true", help="compile every network")
    text = f"the model that speedups are over (default: {BASELINE} if it is there, else the first)"
    parser.add_argument("--baseline", metavar="MODEL", help=text)


def add_measuring(parser: argparse.ArgumentParser, out: str) -> None:
    add_device_and_output(parser, out)
    text = "timed runs of each, taking turns (default: 5 on the CPU, 30 on CUDA)"
    parser.add_argument("--repeats", type=positive, metavar="N", help=text)
    text = "CPU threads (default: as torch chooses)"
    parser.add_argument("--threads", type=positive, metavar="N", help=text)
    parser.add_argument(
        "--no-process-memory",
        action="store_true",
        help="do not run each in a process of its own for its peak memory; on CUDA the memory of "
        "tensors is measured anyhow",
    )


def add_device_and_output(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda if there)")
    text = f"files to write: PREFIX.csv and PREFIX.json (default: {out})"
    parser.add_argument("--out", type=Path, default=Path(out), metavar="PREFIX", help=text)


def _add_number(parser: argparse.ArgumentParser, flag: str, default: int, text: str) -> None:
    text = f"{text} (default: {default})"
    parser.add_argument(flag, type=positive, default=default, metavar="N", help=text)


def _networks(args: argparse.Namespace) -> int:
    import torch

    from esc_arch.inference.replays import require_cuda
    from esc_arch.study.speed.contenders import flops
    from esc_arch.study.speed.jobs import NetworkJob
    from esc_arch.study.speed.results import add_speedups, format_table, save, timing_columns

    if args.cuda_graphs:
        require_cuda("--cuda-graphs", torch.device(args.device))
    contenders = _contenders(args)
    facts = describe_run(args.device, args.threads)
    rows: list[dict[str, Any]] = []
    for scale, (width, height) in _cases(args.size, args.scale):
        jobs = [
            NetworkJob(one, scale, width, height, args.batch, args.device, args.cuda_graphs)
            for one in contenders
        ]
        case_rows = []
        for job, measurement in zip(jobs, measured(args, jobs), strict=True):
            count = None
            if measurement.error is None and not args.no_flops:
                count = flops(job.contender.name, scale, width, height)
            columns = timing_columns(measurement)
            rate = count and columns["latency_ms"] and 2e-6 * count * args.batch
            case_rows.append(
                {
                    "model": job.contender.label,
                    "scale": scale,
                    "lr_size": f"{width}x{height}",
                    "batch": args.batch,
                    "precision": measurement.facts.get("precision"),
                    "cuda_graphs": args.cuda_graphs or None,
                    "parameters": measurement.facts.get("parameters"),
                    "gmacs": count and round(count / 1e9, 2),
                    "gflop_per_s": rate and round(rate / columns["latency_ms"], 1),
                    **columns,
                }
            )
        add_speedups(case_rows, _baseline(args, contenders, case_rows))
        rows += case_rows
        # After each case: a run that is stopped leaves what it measured.
        paths = save(args.out, rows, facts)
        print(f"\n{format_table(case_rows)}\n", flush=True)
    print(f"wrote {paths[0]} and {paths[1]}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from esc_arch.errors import UserError
    from esc_arch.study.speed.jobs import TrainingJob
    from esc_arch.study.speed.results import add_speedups, timing_columns

    contenders = _contenders(args)
    for text, contender in zip(args.models, contenders, strict=True):
        if contender.runtime is not None:
            raise UserError(f"--models {text}: {contender.runtime} trains nothing")
    facts = describe_run(args.device, args.threads)
    jobs = [TrainingJob(one, args.scale, args.batch, args.patch, args.device) for one in contenders]
    rows = [
        {
            "model": job.contender.label,
            "scale": args.scale,
            "batch": args.batch,
            "patch": args.patch,
            "precision": measurement.facts.get("precision"),
            "parameters": measurement.facts.get("parameters"),
            **timing_columns(measurement),
        }
        for job, measurement in zip(jobs, measured(args, jobs), strict=True)
    ]
    add_speedups(rows, _baseline(args, contenders, rows))
    return finish(args, rows, facts)


def finish(args: argparse.Namespace, rows: list[dict[str, Any]], facts: dict[str, Any]) -> int:
    from esc_arch.study.speed.results import format_table, save

    paths = save(args.out, rows, facts)
    print(f"\n{format_table(rows)}\n\nwrote {paths[0]} and {paths[1]}")
    return 0


def measured(args: argparse.Namespace, jobs: Sequence[Job]) -> list[Any]:
    from esc_arch.study.speed.measure import measure

    on_gpu = args.device.startswith("cuda")
    repeats, warmup = args.repeats or (30 if on_gpu else 5), 3 if on_gpu else 0
    return measure(jobs, repeats, warmup, not args.no_process_memory, args.threads)


def _contenders(args: argparse.Namespace) -> list[Contender]:
    from esc_arch.errors import UserError
    from esc_arch.ops.attention import canonical_attn_type
    from esc_arch.study.speed.contenders import parse_contender

    if args.attn_type is not None:
        canonical_attn_type(args.attn_type)
    if args.baseline is not None and args.baseline not in args.models:
        raise UserError(f"--baseline {args.baseline}: is not among --models")
    return [parse_contender(text, args.attn_type, args.dtype, args.compile) for text in args.models]


def _cases(
    sizes: Sequence[tuple[int, int]] | None, scales: Sequence[int] | None
) -> list[tuple[int, tuple[int, int]]]:
    """(scale, (width, height) of the LR image) of each table."""
    from esc_arch.errors import UserError
    from esc_arch.study.complexity import OUTPUT_HEIGHT, OUTPUT_WIDTH

    for scale in scales or []:
        if not 1 <= scale <= 8:
            raise UserError(f"--scale {scale}: must be from 1 to 8")
    if sizes:
        return [(scale, size) for scale in scales or [4] for size in sizes]
    # Rounded up for x3, as in the paper: 427x240.
    return [(s, (-(-OUTPUT_WIDTH // s), -(-OUTPUT_HEIGHT // s))) for s in scales or [2, 3, 4]]


def _baseline(
    args: argparse.Namespace, contenders: Sequence[Contender], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    if args.baseline is not None:
        return rows[args.models.index(args.baseline)]
    names = [one.name for one in contenders]
    return rows[names.index(BASELINE) if BASELINE in names else 0]


def describe_run(device: str, threads: int | None) -> dict[str, Any]:
    from esc_arch.study.speed.measure import set_up_process
    from esc_arch.study.speed.results import describe

    set_up_process(threads)
    facts = describe(device)
    on = facts["environment"]
    versions = f"{on['threads']} CPU threads, torch {on['versions']['torch']}"
    print(f"{on.get('gpu', on['cpu'])}, {versions}")
    return facts


def checked_device(device: str | None) -> str:
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


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text}: must be WIDTHxHEIGHT in pixels, e.g. 320x180")
    return int(match[1]), int(match[2])


def positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)
