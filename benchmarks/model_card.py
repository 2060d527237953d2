"""What docs/model_card.md shows of the weights that ship, on photographs of scikit-image.

    python benchmarks/model_card.py

draws docs/model_card.png and prints PSNR and SSIM beside bicubic, for LR images as they are made
for the benchmarks, and after JPEG compression, of which the training data has none.
"""

import shutil
from pathlib import Path

import cv2
import yaml

from esc_arch.cli.demo import DATA, compare, draw, print_table
from esc_arch.prepare.demo_data import prepare_demo

ROOT = Path(__file__).parent.parent
WEIGHTS = "ESC_light_x2_BSD"
JPEG_QUALITY = 75


def main() -> None:
    """Measure and draw."""
    prepare_demo(DATA)
    opt = yaml.safe_load((ROOT / "options" / f"train_{WEIGHTS}.yml").read_text(encoding="utf-8"))
    demo = yaml.safe_load((ROOT / "options/train_ESC_demo_x2.yml").read_text(encoding="utf-8"))
    opt["datasets"]["val"] = demo["datasets"]["val"]

    comparisons = compare(opt, WEIGHTS)
    print_table(comparisons)
    draw(ROOT / "docs/model_card.png", comparisons)

    compressed = Path("results/model_card_jpeg")
    shutil.rmtree(compressed, ignore_errors=True)
    compressed.mkdir(parents=True)
    for path in Path(opt["datasets"]["val"]["dataroot_lq"]).iterdir():
        _, content = cv2.imencode(
            ".jpg", cv2.imread(str(path)), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        cv2.imwrite(str(compressed / path.name), cv2.imdecode(content, cv2.IMREAD_COLOR))
    opt["datasets"]["val"]["dataroot_lq"] = str(compressed)
    print(f"LR compressed as JPEG of quality {JPEG_QUALITY}:")
    print_table(compare(opt, WEIGHTS))


if __name__ == "__main__":
    main()
