"""`basicsr convert`: checkpoints into other forms."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from esc_arch.errors import UserError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from esc_arch.zoo.loading import Checkpoint

HELP = "Convert a checkpoint: to FlashBias, to safetensors, from and to other trainers' names."

# Side of the part of the photograph that serves as LR image.
_CROP = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the conversions, each with arguments of its own."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)

    flashbias = kinds.add_parser(
        "flashbias",
        help="replace the tables of relative position biases by the two factors of FlashBias",
        description="Truncated SVD of every head's bias. Prints, for each rank, the largest error "
        "of the bias and of the output on a photograph.",
    )
    flashbias.add_argument(
        "--rank", required=True, nargs="+", metavar="R", help="singular values kept, e.g. 48"
    )
    # The ranks before it may swallow it, see `_split_ranks`.
    flashbias.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="name or path")
    flashbias.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="file to write, .pth or .safetensors, with {rank} in its name where there are several "
        "ranks; without it only the errors are printed",
    )
    flashbias.add_argument(
        "--image",
        type=Path,
        help=f"photograph to upscale (default: {_CROP} x {_CROP} pixels of scikit-image's "
        "'astronaut')",
    )
    flashbias.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    safetensors = kinds.add_parser(
        "safetensors", help="keep the network's best weights (params_ema) as .safetensors"
    )
    safetensors.add_argument("checkpoint", metavar="CHECKPOINT", help="name or path")
    safetensors.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="file to write, .safetensors"
    )
    safetensors.add_argument(
        "--metadata",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="text to keep in the file, which `basicsr checkpoints info` prints, e.g. data=DIV2K",
    )
    safetensors.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="round the weights to it, and print by how much a photograph's output differs; those "
        "of 16 bits take half the space, and are computed in float32 all the same (default: as "
        "they are)",
    )
    safetensors.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    for kind, text in (
        ("basicsr", "a network of traiNNer-redux or neosr, to train on in BasicSR"),
        ("trainner", "a network as traiNNer-redux writes it, where it has the same"),
    ):
        names = kinds.add_parser(kind, help=f"write {text}; prints its options")
        names.add_argument("checkpoint", metavar="CHECKPOINT", help="name or path")
        names.add_argument(
            "-o",
            "--output",
            required=True,
            metavar="OUT",
            help="file to write, .pth or .safetensors",
        )
        names.add_argument(
            "--scale",
            type=int,
            metavar="N",
            help="by how much it upscales, for the few files that do not tell",
        )
        names.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert."""
    kinds = {
        "flashbias": _flashbias,
        "safetensors": _safetensors,
        "basicsr": _names,
        "trainner": _names,
    }
    return kinds[args.kind](args)


def _flashbias(args: argparse.Namespace) -> int:
    import sys

    from esc_arch.zoo.local import resolve

    checkpoint_name, ranks = _split_ranks(args)
    path = resolve(checkpoint_name)  # First: a wrong name is told before torch is imported.
    import torch
    from tqdm import tqdm

    from esc_arch.ops.flashbias import factorize_state_dict
    from esc_arch.zoo.loading import read_checkpoint
    from esc_arch.zoo.params import PARAM_KEYS

    checkpoint = read_checkpoint(path)
    network_g = checkpoint.network_g
    _check_ranks(ranks, network_g, checkpoint.path)
    outputs = _outputs(args, ranks)
    lq = _photograph(args.image)

    converted: dict[int, dict[str, dict[str, Tensor]]] = {rank: {} for rank in ranks}
    errors = {}
    for key, params in checkpoint.params.items():
        with tqdm(desc=f"biases of {key}", unit="table", disable=not sys.stderr.isatty()) as bar:
            states, errors[key] = factorize_state_dict(
                params, network_g["window_size"], ranks, bar.update
            )
        for rank, state in states.items():
            converted[rank][key] = state
    best = next(key for key in PARAM_KEYS if key in checkpoint.params)

    with torch.inference_mode():
        exact = _output(network_g, checkpoint.best, lq)
        print(
            f"{printable(checkpoint.path)} ({best}): largest errors, of the bias and of the output"
        )
        print(
            f"on {printable(args.image or 'astronaut')}, where 1 is the range from black to white"
        )
        print(f"{'rank':>5}  {'bias':>9}  {'output':>9}")
        for rank in ranks:
            options = {**network_g, "attn_type": "FlashBias", "flashbias_rank": rank}
            error = (_output(options, converted[rank][best], lq) - exact).abs().max().item()
            print(f"{rank:5}  {errors[best][rank]:9.2e}  {error:9.2e}")
            if outputs:
                options = {**network_g, "attn_type": "FlashBias", "flashbias_rank": rank}
                _write(outputs[rank], converted[rank], options, checkpoint.metadata)
    for path in outputs.values():
        print(f"written: {printable(path)}")
    return 0


def _split_ranks(args: argparse.Namespace) -> tuple[str, list[int]]:
    """The checkpoint and the ranks, also from `--rank 16 48 CHECKPOINT`."""
    ranks, checkpoint = list(args.rank), args.checkpoint
    if checkpoint is None and not ranks[-1].isdecimal():
        checkpoint = ranks.pop()
    if checkpoint is None:
        raise UserError("CHECKPOINT is missing: basicsr convert flashbias --rank 48 CHECKPOINT")
    for rank in ranks:
        if not rank.isdecimal():
            raise UserError(f"--rank {rank}: must be a number, 1 or more")
    return checkpoint, sorted({int(rank) for rank in ranks})


def _check_ranks(ranks: list[int], network_g: dict, path: Path) -> None:
    if network_g.get("attn_type") == "FlashBias":
        raise UserError(f"{path}: has the factors of FlashBias already")
    if not ranks:
        raise UserError("--rank: is missing; a number such as 48 is needed")
    # Flash kernels take vectors of up to 256.
    head_dim = network_g["dim"] // network_g["num_heads"]
    largest = min(network_g["window_size"] ** 2, 256 - head_dim)
    for rank in ranks:
        if not 1 <= rank <= largest:
            raise UserError(f"--rank {rank}: must be from 1 to {largest} for this network")


def _outputs(args: argparse.Namespace, ranks: list[int]) -> dict[int, Path]:
    if args.output is None:
        return {}
    if len(ranks) > 1 and "{rank}" not in args.output:
        raise UserError(f"-o {args.output}: for several ranks, {{rank}} must be in the name")
    paths = {rank: Path(args.output.replace("{rank}", str(rank))) for rank in ranks}
    for path in paths.values():
        _check_output(path, (".pth", ".safetensors"), args.overwrite)
    return paths


def _check_output(path: Path, suffixes: tuple[str, ...], overwrite: bool) -> None:
    if path.suffix not in suffixes:
        raise UserError(f"-o {path}: must end in {' or '.join(suffixes)}")
    if path.exists() and not overwrite:
        raise UserError(f"-o {path}: exists; --overwrite replaces it")


def _photograph(path: Path | None) -> "Tensor":
    import torch

    from esc_arch.inference.picture_files import read_picture

    if path is None:
        import skimage.data

        # Her face, and the helmet's edge.
        pixels = skimage.data.astronaut()[60 : 60 + _CROP, 160 : 160 + _CROP] / 255
    else:
        pixels = read_picture(path).pixels
        pixels = pixels / (65535 if pixels.dtype.itemsize == 2 else 255)
        pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1].repeat(3, axis=2)
    return torch.from_numpy(pixels).float().permute(2, 0, 1)[None]


def _output(network_g: dict, params: "dict[str, Tensor]", lq: "Tensor") -> "Tensor":
    from esc_arch.inference.upscaler import Upscaler
    from esc_arch.zoo.identify import build_on_meta

    network = build_on_meta(network_g)
    network.load_state_dict({name: value.float() for name, value in params.items()}, assign=True)
    return Upscaler(network.eval(), network_g).upscale(lq)


def _safetensors(args: argparse.Namespace) -> int:
    from esc_arch.zoo.local import resolve

    path = resolve(args.checkpoint)
    output = Path(args.output)
    _check_output(output, (".safetensors",), args.overwrite)
    from esc_arch.zoo.loading import read_checkpoint

    checkpoint: Checkpoint = read_checkpoint(path)
    metadata = dict(checkpoint.metadata)
    for entry in args.metadata:
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise UserError(f"--metadata {entry}: must be KEY=VALUE")
        metadata[key] = value
    best = checkpoint.best
    if args.dtype is not None:
        best = _rounded(checkpoint, args.dtype)
    _write(output, {"params": best}, checkpoint.network_g, metadata)
    print(f"written: {printable(output)}")
    return 0


def _rounded(checkpoint: "Checkpoint", dtype: str) -> "dict[str, Tensor]":
    """The best weights in another dtype; prints by how much the output differs."""
    import torch

    best = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for name, value in checkpoint.best.items()
    }
    for name, value in best.items():
        if not value.isfinite().all() and checkpoint.best[name].isfinite().all():
            raise UserError(f"--dtype {dtype}: {printable(name)} has values beyond its range")
    lq = _photograph(None)
    with torch.inference_mode():
        exact, rounded = (_output(checkpoint.network_g, x, lq) for x in (checkpoint.best, best))
    error = (rounded - exact).abs().max().item()
    print(
        f"{dtype}: the output differs by at most {error:.1e} on astronaut, black to white being 1"
    )
    return best


def _names(args: argparse.Namespace) -> int:
    import yaml

    from esc_arch.zoo.local import resolve

    path, output = resolve(args.checkpoint), Path(args.output)
    _check_output(output, (".pth", ".safetensors"), args.overwrite)
    from esc_arch.zoo.foreign_names import to_basicsr, to_trainner
    from esc_arch.zoo.loading import read_checkpoint

    checkpoint: Checkpoint = read_checkpoint(path, args.scale)
    if args.kind == "basicsr":
        named = {k: to_basicsr(checkpoint.network_g, v) for k, v in checkpoint.params.items()}
        params = {key: tensors for key, (_, tensors) in named.items()}
        network_g = next(iter(named.values()))[0]
        _write(output, params, network_g, checkpoint.metadata)
    else:
        network_g, best = to_trainner(checkpoint.network_g, checkpoint.best, printable(path))
        bare = output.suffix == ".pth"  # As traiNNer writes it, without a card.
        _write(output, {"params": best}, network_g, checkpoint.metadata, bare)
    print(f"written: {printable(output)}")
    print(yaml.safe_dump({"network_g": network_g}, sort_keys=False), end="")
    return 0


def _write(
    path: Path,
    params: "dict[str, dict[str, Tensor]]",
    network_g: dict,
    metadata: dict[str, str],
    bare: bool = False,
) -> None:
    """Write the file with its card, or the bare tensors."""
    from esc_arch.whole_files import write_atomically
    from esc_arch.zoo.card import KEY, describe
    from esc_arch.zoo.params import PARAM_KEYS
    from esc_arch.zoo.store import save_state

    best = next(params[key] for key in PARAM_KEYS if key in params)
    card = describe(network_g, best, metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pth":
            save_state(best if bare else {**params, KEY: card}, path)
        else:
            from safetensors.torch import save

            tensors = {name: value.contiguous() for name, value in best.items()}
            write_atomically(path, save(tensors, card))
    except OSError as error:
        raise UserError(f"-o {path}: cannot be written: {error.strerror or error}") from None
