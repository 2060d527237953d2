"""`basicsr demo`: train a small ESC on photographs that come with scikit-image, and show it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

HELP = (
    "Train a small ESC on the CPU in a few minutes, compare it with bicubic upscaling, and upscale "
    "a photograph with the weights that came with the package."
)

OPTION_FILE = "train_ESC_demo_x2.yml"
DATA = Path("datasets/demo")
# Top, left and side in HR pixels of what the picture shows of each validation photograph.
SHOWN_CROPS = {"chelsea": (84, 96, 96), "coffee": (20, 330, 96)}


class Comparison(NamedTuple):
    """One validation photograph upscaled both ways; images are (H, W, 3) uint8 in BGR.

    Metrics are those of BasicSR on Y, the border cropped: PSNR in dB, SSIM up to 1.
    """

    name: str
    images: dict[str, np.ndarray]
    psnr: dict[str, float]
    ssim: dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the demo."""
    parser.add_argument(
        "--iterations",
        type=_positive,
        metavar="N",
        help="train for N iterations instead of what the option file says",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path("results/demo.png"),
        metavar="FILE",
        help="where the picture is written (default: %(default)s)",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def run(args: argparse.Namespace) -> int:
    """Prepare the data, train through `basicsr train`, compare, draw; `basicsr upscale`.

    Args:
        args: What `add_arguments` parsed.

    Returns:
        0 if ESC is ahead of bicubic on every photograph, 1 if it is not, or the status with which
        the training or the upscaling failed.

    Raises:
        UserError: The data, the option file or the picture cannot be read or written.
    """
    import subprocess

    import yaml

    from esc_arch.children import basicsr_command
    from esc_arch.cli.missing import need
    from esc_arch.errors import UserError
    from esc_arch.prepare.demo_data import prepare_demo

    need("basicsr", "skimage", "matplotlib")

    print(f"Preparing the photographs in {DATA}", flush=True)
    prepare_demo(DATA)

    option_file = find_option_file()
    opt = yaml.safe_load(option_file.read_text(encoding="utf-8"))
    command = basicsr_command("train", "-opt", option_file)
    if args.iterations is not None:
        command += ["--force_yml", f"train:total_iter={args.iterations}"]
        command += [f"train:scheduler:periods=[{args.iterations}]"]
        command += [f"val:val_freq={max(args.iterations // 5, 1)}"]
        command += [f"logger:print_freq={max(args.iterations // 30, 1)}"]
    print(f"basicsr train -opt {option_file}", flush=True)
    status = subprocess.run(command).returncode
    if status != 0:
        return status

    comparisons = compare(opt, f"experiments/{opt['name']}/models/net_g_latest.pth")
    print_table(comparisons)
    try:
        draw(args.picture, comparisons, read_curves(opt["name"]))
    except OSError as error:
        raise UserError(f"--picture {args.picture}: {error.strerror or error}") from None
    print(f"Picture: {args.picture}")

    photograph = DATA / "val/HR/coffee.png"
    print(f"\nbasicsr upscale {photograph} -o {args.picture.parent} --overwrite", flush=True)
    command = basicsr_command("upscale", photograph)
    status = subprocess.run([*command, "-o", str(args.picture.parent), "--overwrite"]).returncode
    if status != 0:
        return status

    behind = [each.name for each in comparisons if each.psnr["ESC"] <= each.psnr["bicubic"]]
    if behind:
        print(f"ESC is not ahead of bicubic on {', '.join(behind)}: train it for longer.")
    return 1 if behind else 0


def find_option_file() -> Path:
    """The demo's option file: of the installed package, or of the clone it runs from.

    Raises:
        UserError: The installation has lost it.
    """
    from esc_arch.errors import UserError

    package = Path(__file__).parents[1]
    # A wheel has the folder options/ inside the package, a clone beside it.
    for folder in (package / "options", package.parent / "options"):
        if (folder / OPTION_FILE).is_file():
            return folder / OPTION_FILE
    raise UserError(f"{package / 'options' / OPTION_FILE}: missing; install the package again")


def compare(opt: dict, weights: str) -> list[Comparison]:
    """Upscale the validation photographs with a network's EMA weights, and bicubically.

    Args:
        opt: The training's option file.
        weights: The checkpoint: its path, or the name of one that ships.

    Returns:
        One comparison a photograph.
    """
    import esc_arch  # noqa: F401, I001  (before BasicSR)
    import torch
    from basicsr.data import build_dataset
    from basicsr.metrics import calculate_metric
    from basicsr.models import build_model
    from basicsr.utils import tensor2img

    from esc_arch.prepare.imresize import imresize

    model = build_model(
        {
            **opt,
            "num_gpu": int(torch.cuda.is_available()),
            "dist": False,
            "is_train": False,
            "path": {"pretrain_network_g": weights, "param_key_g": "params_ema"},
        }
    )
    dataset = build_dataset({**opt["datasets"]["val"], "phase": "val", "scale": opt["scale"]})
    comparisons = []
    for pair in dataset:
        lq, gt = tensor2img(pair["lq"]), tensor2img(pair["gt"])
        model.feed_data({"lq": pair["lq"][None]})
        model.test()
        images = {
            "bicubic": imresize(lq, opt["scale"]),
            "ESC": tensor2img(model.output),
            "ground truth": gt,
        }
        metrics = {
            metric: {
                method: calculate_metric(
                    {"img": images[method], "img2": gt}, opt["val"]["metrics"][metric]
                )
                for method in ("bicubic", "ESC")
            }
            for metric in ("psnr", "ssim")
        }
        comparisons.append(Comparison(Path(pair["gt_path"]).stem, images, **metrics))
    return comparisons


def print_table(comparisons: list[Comparison]) -> None:
    """Print PSNR and SSIM of both ways, a line a photograph."""
    print(f"\n{'PSNR (dB) / SSIM on Y':<24}{'bicubic':>18}{'ESC':>18}{'gain (dB)':>12}")
    for each in comparisons:
        cells = [f"{each.psnr[way]:.2f} / {each.ssim[way]:.4f}" for way in ("bicubic", "ESC")]
        gain = each.psnr["ESC"] - each.psnr["bicubic"]
        print(f"{each.name:<24}{cells[0]:>18}{cells[1]:>18}{gain:>+12.2f}")
    print(flush=True)


def read_curves(name: str) -> dict[str, tuple[list[int], list[float]]]:
    """Read from the TensorBoard log what the training logged.

    Args:
        name: Name of the experiment.

    Returns:
        Iterations and values of `loss` and of `psnr`.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"tb_logger/{name}", size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        curve = tag.rsplit("/", 1)[-1].replace("l_pix", "loss")
        points = events.Scalars(tag)
        curves[curve] = ([point.step for point in points], [point.value for point in points])
    return curves


def draw(
    path: Path,
    comparisons: list[Comparison],
    curves: dict[str, tuple[list[int], list[float]]] | None = None,
) -> None:
    """Write one PNG: a row of crops for each photograph, and below them the curves, if any.

    Args:
        path: Where to write; its folder is made.
        comparisons: What `compare` returned.
        curves: What `read_curves` returned; None for a picture without.
    """
    import io

    from matplotlib.figure import Figure

    from esc_arch.whole_files import write_atomically

    rows = len(comparisons)
    heights = [3.1] * rows + [2.6] * (curves is not None)
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
    for row, each in enumerate(comparisons):
        top, left, side = SHOWN_CROPS[each.name]
        for column, (method, image) in enumerate(each.images.items()):
            axes = figure.add_subplot(grid[row, 2 * column : 2 * column + 2])
            axes.imshow(image[top : top + side, left : left + side, ::-1], interpolation="nearest")
            axes.set_axis_off()
            figures = (
                f"{each.psnr[method]:.2f} dB / {each.ssim[method]:.4f}"
                if method in each.psnr
                else each.name
            )
            axes.set_title(f"{method}\n{figures}", fontsize=10)

    if curves is not None:
        _draw_curves(figure, grid, comparisons, curves)

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def _draw_curves(
    figure: Figure,
    grid: GridSpec,
    comparisons: list[Comparison],
    curves: dict[str, tuple[list[int], list[float]]],
) -> None:
    rows = len(comparisons)
    axes = figure.add_subplot(grid[rows, :3])
    axes.semilogy(*curves["loss"])
    axes.set(title="training loss (L1)", xlabel="iteration")
    axes = figure.add_subplot(grid[rows, 3:])
    axes.plot(*curves["psnr"], marker="o", label="ESC")
    bicubic = sum(each.psnr["bicubic"] for each in comparisons) / rows
    axes.axhline(bicubic, color="grey", linestyle="--", label="bicubic")
    axes.set(title="validation PSNR (dB), mean", xlabel="iteration")
    axes.legend()
