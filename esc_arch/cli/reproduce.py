"""`basicsr reproduce`: the paper's tables, computed again beside the printed figures."""

import argparse
import sys
from pathlib import Path

HELP = "Compute the paper's tables again, as far as weights and images are on the disk."
FOLDERS = {
    "data": Path("datasets/benchmarks"),
    "real": Path("datasets/real"),
    "weights": Path("experiments/pretrained_models"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to reproduce, and from what."""
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="any of ESC, ESC_light, ESC_FP, ESC_DFLIP, ESC_XL, ESC_Real_MSE, ESC_Real_GAN, and "
        "ESC_light_BSD, the weights that ship with this package (default: all)",
    )
    parser.add_argument(
        "--scales", nargs="+", type=int, choices=(2, 3, 4), default=[2, 3, 4], help="default: all"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=FOLDERS["data"],
        metavar="FOLDER",
        help="benchmark sets, SET/HR and SET/LR_bicubic/X2 and so on (default: %(default)s)",
    )
    parser.add_argument(
        "--real",
        type=Path,
        default=FOLDERS["real"],
        metavar="FOLDER",
        help="photographs without ground truth for ESC_Real_* (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=FOLDERS["weights"],
        metavar="FOLDER",
        help="checkpoints under their published names (default: %(default)s)",
    )
    parser.add_argument(
        "--no-weights",
        action="store_true",
        help="parameters and FLOPs only, which need neither weights nor images",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("results/reproduce"),
        metavar="FOLDER",
        help="where the tables go, as Markdown and CSV (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print and save the tables.

    Returns:
        0; 1 if parameters or FLOPs differ from the paper's; 2 if a test could not be run.

    Raises:
        UserError: A model is unknown, a folder that is named is missing or cannot be written.
    """
    pairs = _pairs(args)  # First: a wrong name is told before torch is imported.
    _check_folders(args)
    from tqdm import tqdm

    from esc_arch.errors import UserError
    from esc_arch.study.paper import MODELS, measure_complexity
    from esc_arch.study.quality import measure_quality, measure_real_quality, remedies
    from esc_arch.study.tables import save_tables

    complexity, quality, real, errors = [], [], [], []
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for model, scale in tqdm(pairs, desc="counting FLOPs", disable=not sys.stderr.isatty()):
            complexity.append(measure_complexity(model, scale))
        text = save_tables(complexity, quality, real, args.output)
        for model, scale in pairs if not args.no_weights else []:
            case = model, scale, args.real if MODELS[model].is_real else args.data
            if MODELS[model].is_real:
                row, error = measure_real_quality(*case, args.weights, args.output)
                real.append(row)
            else:
                rows, error = measure_quality(*case, args.weights, args.output)
                quality += rows
            errors += [error] if error else []
            # After each test, so that an interrupted run keeps what it has measured.
            text = save_tables(complexity, quality, real, args.output)
    except OSError as error:
        raise UserError(
            f"--output {args.output}: {error.strerror}: {error.filename or ''}"
        ) from None

    print(text)
    for line in remedies(quality, real, args.data, args.weights):
        print(line)
    print(f"Saved in {args.output}")
    for error in errors:
        print(f"basicsr: error: {error}", file=sys.stderr)
    wrong = [row for row in complexity if "no" in (row.parameters_agree, row.flops_agree)]
    for row in wrong:
        print(
            f"basicsr: {row.model} x{row.scale}: not the size that the paper has", file=sys.stderr
        )
    return 2 if errors else 1 if wrong else 0


def _check_folders(args: argparse.Namespace) -> None:
    """Refuse folders that are named and missing; without the default ones, cells stay empty."""
    from esc_arch.errors import UserError

    for option, default in FOLDERS.items():
        folder = getattr(args, option)
        if folder != default and not folder.is_dir():
            raise UserError(f"--{option} {folder}: no such folder")


def _pairs(args: argparse.Namespace) -> list[tuple[str, int]]:
    """The models and scales that are asked for and exist."""
    import difflib

    from esc_arch.errors import UserError
    from esc_arch.study.paper import MODELS
    from esc_arch.zoo.catalogue import shipped

    models = list(dict.fromkeys(args.models or MODELS))
    for model in models:
        if model not in MODELS:
            close = difflib.get_close_matches(model, MODELS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(MODELS)}"
            raise UserError(f"--models {model}: no such model in the paper's tables; {hint}")
        scales = MODELS[model].scales
        if args.models and not set(scales) & set(args.scales):
            raise UserError(f"--models {model}: is for x{' and x'.join(map(str, scales))} alone")
    return [
        (model, scale)
        for model in models
        for scale in dict.fromkeys(args.scales)
        if scale in MODELS[model].scales
        # Not all scales ship.
        and (args.models or not MODELS[model].shipped or MODELS[model].weights(scale) in shipped())
    ]
