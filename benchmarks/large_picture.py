"""Memory of `basicsr upscale` for a picture of 200 megapixels: that of a row of tiles.

    python benchmarks/large_picture.py [--width 16320] [--height 12240] [--network cheap]

A picture is drawn, upscaled from file to file in a process of its own, and the process's largest
memory is printed, also less what `import torch` takes. With `--network cheap` (a convolution) the
network takes no time, so that the whole picture can be done; `--network shipped` is ESC-light, of
which a part of the height has the same rows of tiles.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import resource
import sys
from pathlib import Path

import torch

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

class Cheap(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x):
        return torch.nn.functional.pixel_shuffle(self.convolution(x), 2)

torch.zeros(1) + 1
start = peak()
import esc_arch
from esc_arch.inference.upscaler import Upscaler
from esc_arch.inference.work import Job, run_job

torch.manual_seed(0)
upscaler = Upscaler(Cheap().requires_grad_(False), {"upscaling_factor": 2, "window_size": 32})
if sys.argv[3] == "shipped":
    upscaler = esc_arch.load(device="cpu")
run_job(Job(Path(sys.argv[1]), Path(sys.argv[2])), upscaler)
print(f"{start:.0f} MB with torch imported, {peak():.0f} MB at most, {peak() - start:.0f} MB above")
"""


def draw(path: Path, width: int, height: int) -> None:
    """A picture of soft waves with a little noise, written row by row."""
    import pyvips

    waves = pyvips.Image.sines(width, height, hfreq=0.013 * width / 100, vfreq=0.017 * height / 100)
    noise = pyvips.Image.gaussnoise(width, height, sigma=2)
    grey = (waves * 90 + 128 + noise).cast("uchar")
    rgb = grey.bandjoin([grey.invert(), grey]).copy(interpretation="srgb")
    rgb.pngsave(str(path), compression=1)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16320)
    parser.add_argument("--height", type=int, default=12240)
    parser.add_argument("--network", choices=["cheap", "shipped"], default="cheap")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "source.png"), Path(name, "target.png")
        draw(source, args.width, args.height)
        megapixels = args.width * args.height / 1e6
        print(
            f"{args.width} x {args.height}, {megapixels:.1f} megapixels; {args.network}; the "
            f"result has {megapixels * 12:.0f} MB in 8 bits, {megapixels * 48:.0f} in float32",
            flush=True,
        )
        start = time.monotonic()
        command = [sys.executable, "-c", CHILD, str(source), str(target), args.network]
        subprocess.run(command, check=True)
        print(f"{time.monotonic() - start:.0f} s, {target.stat().st_size / 1e6:.0f} MB of file")


if __name__ == "__main__":
    main()
