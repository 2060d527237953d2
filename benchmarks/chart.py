"""The chart of the README: published PSNR over the latency measured here.

    python benchmarks/chart.py [RESULTS.json] [CHART.png]

RESULTS.json is what `basicsr bench --scale 4 --size 320x180 --out RESULTS` wrote (default: the
committed results of a CPU); PSNR is Urban100 x4 from the paper's table. Bubbles are parameters.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from esc_arch.study.paper import paper_table

ROOT = Path(__file__).parent.parent
OURS = {"ESC": "ESC", "ESC_light": "ESC-light", "ESC_FP": "ESC-FP"}
# RCAN is left out: 16 times the parameters of the others, its bubble would hide them.
PEERS = {"SwinIR_light": "SwinIR-light", "OmniSR": "OmniSR", "ATD_light": "ATD-light"}
# Where a name stands beside its bubble, in points.
OFFSETS = {"ESC-light": (0, -20), "OmniSR": (0, -20), "ESC-FP": (24, 14)}


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ROOT / "benchmarks/results/bench_cpu_x4.json"
    parser.add_argument("results", nargs="?", type=Path, default=default)
    parser.add_argument("chart", nargs="?", type=Path, default=ROOT / "docs/psnr_latency.png")
    args = parser.parse_args()
    content = json.loads(args.results.read_text(encoding="utf-8"))
    environment = content["environment"]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for row in content["rows"]:
        method = (OURS | PEERS).get(row["model"])
        if method is None or not row["latency_ms"]:
            continue
        psnr, _, _ = paper_table()["DIV2K", method, 4]["urban100"].partition("/")
        colour = "tab:red" if row["model"] in OURS else "tab:blue"
        point = row["latency_ms"], float(psnr)
        axes.scatter(*point, s=row["parameters"] / 1500, color=colour, alpha=0.6)
        axes.annotate(
            method,
            point,
            OFFSETS.get(method, (0, 16)),
            textcoords="offset points",
            ha="center",
            weight="bold" if row["model"] in OURS else "normal",
        )
    axes.set_xscale("log")
    axes.set_xticks(ticks := (500, 1000, 2000, 5000, 10000), [f"{tick / 1000:g}" for tick in ticks])
    axes.minorticks_off()
    axes.margins(0.14, 0.2)
    axes.set_xlabel("seconds for an LR image of 320x180, float32")
    axes.set_ylabel("PSNR on Urban100 x4 (dB), published")
    hardware = environment.get("gpu", f"{environment['cpu']}, {environment['threads']} threads")
    versions = f"torch {environment['versions']['torch']}"
    axes.set_title(f"{hardware}; {versions}; bubbles: parameters", fontsize=9)
    axes.grid(alpha=0.3)
    figure.savefig(args.chart, dpi=150)
    print(f"wrote {args.chart}")


if __name__ == "__main__":
    main()
