import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

readme = Path(__file__).parent / "README.md"

# Clang on macOS has no OpenMP; the functions then run in one thread.
openmp = ["-fopenmp"] if sys.platform.startswith("linux") else []

# Libraries of one Python only, as they were built in place once, would be found before today's.
for stale in Path("esc_arch/kernels/cpu").glob("_cpu_kernels.cpython-*"):
    stale.unlink()


class WheelOfAnyPython(bdist_wheel):
    """Tags the wheel for every Python: the kernels are called through ctypes and know none."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


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
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    packages=[
        *find_packages(include=["esc_arch*"]),
        "esc_arch.options",
    ],
    # The option files, which `basicsr demo` needs anywhere, are kept once, in options/.
    package_dir={"esc_arch.options": "options"},
    package_data={
        "esc_arch": ["py.typed"],
        "esc_arch.cli": ["exec_as_before/*.py"],
        "esc_arch.study": ["paper_tables.csv"],
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
            # Only for the file's name, which then is the same for all of Python 3.
            py_limited_api=True,
        )
    ],
    cmdclass={"bdist_wheel": WheelOfAnyPython},
    # Sources, settings and option files are in the wheel as package data, or not at all.
    include_package_data=False,
    python_requires=">=3.10",
    # The lowest versions are those of tests/oldest.txt, which `make test-oldest` installs: they
    # work together, and have no known hole (what decides for requests, pillow, opencv and tqdm).
    install_requires=[
        # Its setup.py cannot be run on 3.13 and newer (PEP 667): `basicsr install-basicsr`.
        'basicsr>=1.4.2; python_version < "3.13"',
        "lmdb>=1.5.1",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "opencv-python>=4.12",
        "pillow>=12.1.1",
        "pyvips[binary]>=3.0",
        "pyyaml>=6.0.2",
        "requests>=2.33",
        "safetensors>=0.4.5",
        "scikit-image>=0.25",
        "scipy>=1.13",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm>=4.66.3",
        "wrapt>=1.16",
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
