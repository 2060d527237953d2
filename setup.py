import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

readme = Path(__file__).parent / "README.md"

# Clang on macOS has no OpenMP; the functions then run in one thread.
openmp = ["-fopenmp"] if sys.platform.startswith("linux") else []

setup(
    name="esc-arch",
    version="0.1.0",
    description="ESC super-resolution networks (ICCV 2025) as a BasicSR plugin",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author="ESC for BasicSR authors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    packages=[
        *find_packages(include=["esc_arch*"]),
        "esc_arch.options",
    ],
    # The option files, which `basicsr demo` needs anywhere, are kept once, in options/.
    package_dir={"esc_arch.options": "options"},
    package_data={
        "esc_arch.study": ["paper_tables.csv"],
        "esc_arch": ["py.typed"],
        "esc_arch.zoo": ["weights/*.safetensors"],
        "esc_arch.options": ["*.yml"],
    },
    # Plain functions, loaded by esc_arch/kernels/cpu/library.py. Without a compiler the package
    # installs all the same, and works through torch's own operations.
    ext_modules=[
        Extension(
            "esc_arch.kernels.cpu._cpu_kernels",
            ["esc_arch/kernels/cpu/csrc/kernels.cpp"],
            depends=[str(header) for header in Path("esc_arch/kernels/cpu/csrc").glob("*.h")],
            extra_compile_args=["-O3", "-std=c++17", "-fno-math-errno", *openmp],
            extra_link_args=openmp,
            optional=True,
        )
    ],
    # BasicSR 1.4.2 cannot be built on 3.13: its setup.py reads its version through locals() after
    # an exec, which PEP 667 made impossible.
    python_requires=">=3.10,<3.13",
    install_requires=[
        "basicsr>=1.4.2",
        "lmdb",
        "matplotlib",
        "numpy",
        "opencv-python",
        "pillow",
        "pyvips[binary]>=3.0",
        "pyyaml",
        "requests",
        "safetensors",
        "scikit-image",
        "scipy",
        "torch>=2.4",
        "torchvision",
        "tqdm",
        "wrapt",
    ],
    extras_require={
        "test": ["fvcore", "hypothesis", "pytest", "pytest-xdist", "ruff"],
        "docs": ["mkdocs-material"],
        "flash": ["flash-attn"],
        "bench": ["spandrel", "spandrel-extra-arches"],
    },
    entry_points={
        "console_scripts": ["basicsr=esc_arch.cli.main:main"],
        "basicsr.plugins": ["esc=esc_arch"],
    },
)
