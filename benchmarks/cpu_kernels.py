"""Time the CPU kernels, alone and in whole networks, side by side with another checkout's.

    python benchmarks/cpu_kernels.py
    python benchmarks/cpu_kernels.py --against ../esc-before --busy 1

Each checkout runs in a process of its own, on the Python of its `.venv`, and they take turns.
`--busy` starts that many processes that burn a core each meanwhile: what waits for the slowest
thread shows it. Figures are milliseconds: the smallest, and the median.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = ("attention", "attention step", "conv_ffn step", "conv step", "small", "ESC", "ESC step")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout, with its .venv")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    parser.add_argument("--busy", type=int, default=0, help="processes that burn a core each")
    parser.add_argument("--turns", type=int, default=15, help="runs of each (default: 15)")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, metavar="CASE")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.threads)
        return
    checkouts = {"this": Path(__file__).resolve().parents[1]}
    if args.against:
        checkouts[args.against.name] = args.against.resolve()
    servers = {name: start(path, args.threads) for name, path in checkouts.items()}
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)
    ]
    try:
        for case in args.cases:
            times = {name: [] for name in servers}
            for _ in range(args.turns):
                for name, server in servers.items():
                    times[name].append(ask(server, case))
            row = "  ".join(
                f"{name} {min(values):8.1f} {statistics.median(values):8.1f}"
                for name, values in times.items()
            )
            print(f"{case:15} {row}", flush=True)
    finally:
        for process in (*servers.values(), *burners):
            process.kill()


def start(checkout: Path, threads: int) -> subprocess.Popen[str]:
    """Start a process that runs cases on a checkout's package."""
    return subprocess.Popen(
        [checkout / ".venv/bin/python", __file__, "--serve", "--threads", str(threads)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(server: subprocess.Popen[str], case: str) -> float:
    """Have a case run, and return its time in milliseconds."""
    server.stdin.write(case + "\n")
    server.stdin.flush()
    return float(server.stdout.readline())


def serve(threads: int) -> None:
    """Run the cases that are asked for, after one run of each that does not count."""
    import torch

    torch.set_num_threads(threads)
    cases = make_cases()
    prepared = set()
    for line in sys.stdin:
        run = cases[line.strip()]
        if line not in prepared:
            prepared.add(line)
            run()
        start = time.perf_counter()
        run()
        print((time.perf_counter() - start) * 1e3, flush=True)


def make_cases():
    """Return the functions to time by their names."""
    import torch

    import esc_arch  # noqa: F401
    from esc_arch.archs.layers import ConvFFN
    from esc_arch.ops.attention import feature_attention
    from esc_arch.ops.geometry import d4_mean

    try:
        from esc_arch.archs.esc import ESC
        from esc_arch.ops.convolutions import long_range_dynamic_conv
    except ImportError:  # Where they were until everything moved.
        from esc_arch.archs.esc_arch import ESC
        from esc_arch.ops.large_kernel import long_range_dynamic_conv

    torch.manual_seed(0)
    network = ESC(
        dim=64,
        pdim=16,
        kernel_size=13,
        n_blocks=5,
        conv_blocks=5,
        window_size=32,
        num_heads=4,
        upscaling_factor=4,
        exp_ratio=1.25,
    )
    picture, small, batch = (
        torch.rand(1, 3, 128, 192),
        torch.rand(1, 3, 32, 32),
        torch.rand(4, 3, 64, 64),
    )
    qkv = [torch.randn(1, 64, 128, 192, requires_grad=True) for _ in range(3)]
    table = torch.randn(4, 63**2, requires_grad=True)
    ffn, features = ConvFFN(64, 3, 1.25), torch.randn(4, 64, 64, 64, requires_grad=True)
    channels = torch.randn(4, 16, 64, 64, requires_grad=True)
    large = torch.randn(16, 16, 13, 13, requires_grad=True)
    kernels = torch.randn(4, 16, 3, 3, requires_grad=True)

    def without_gradients(function, *inputs):
        def run():
            with torch.no_grad():
                function(*inputs)

        return run

    def step(function, *inputs):
        return lambda: function(*inputs).sum().backward()

    def attend(*inputs):
        return feature_attention(*inputs, 32)

    def convolve(x, large, kernels):
        return long_range_dynamic_conv(x, d4_mean(large), kernels)

    return {
        "attention": without_gradients(attend, *qkv, table),
        "attention step": step(attend, *qkv, table),
        "conv_ffn step": step(ffn, features),
        "conv step": step(convolve, channels, large, kernels),
        "small": without_gradients(network, small),
        "ESC": without_gradients(network, picture),
        "ESC step": step(network, batch),
    }


if __name__ == "__main__":
    main()
