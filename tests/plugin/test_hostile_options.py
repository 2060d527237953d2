"""`basicsr test` of option files from strangers: one line, and no file outside `results/`.

The folder that everything happens in holds the option file, data, a home folder, one for temporary
files, and canaries: modules that leave a witness if anything imports them. It is compared before
and after, down to the bytes.
"""

import hashlib
import os
import pickle
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esc_arch.children import basicsr_command

WriteOptions = Callable[..., Path]
# What children of a careless program would import from the current folder.
MODULES = (
    *("lmdb", "socket", "yaml", "mc", "json", "random", "pickle", "typing", "queue", "string"),
    *("torch", "numpy", "cv2", "tqdm", "requests", "sitecustomize", "usercustomize", "basicsr"),
)
CANARY = "open({!r}, 'a').write({!r})\n"


class RunsCode:
    """Unpickled by a careless reader, it leaves a witness."""

    def __init__(self, witness: Path) -> None:
        self.witness = str(witness)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.witness,)


class Place:
    """Where a stranger's option file is run.

    Attributes:
        root: All that is compared before and after.
        work: The current folder, with canaries.
        evil: Files that came along.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work, self.evil = root / "work", root / "evil"
        for folder in (self.work, self.evil, root / "home", root / "tmp"):
            folder.mkdir()
        for folder in (self.work, self.evil):
            for name in MODULES:
                code = CANARY.format(str(root / "ran"), f"{folder.name}/{name} ")
                (folder / f"{name}.py").write_text(code)
            # A matplotlib that reads it says so.
            (folder / "matplotlibrc").write_text("nothing: knows this\n")

    def listing(self) -> dict[str, object]:
        """Everything below the root but `results/`: kind, size, content."""
        found: dict[str, object] = {}
        for parent, folders, files in os.walk(self.root):
            if Path(parent) == self.work and "results" in folders:
                folders.remove("results")
            for name in (*folders, *files):
                path = Path(parent, name)
                mode = path.lstat().st_mode
                content = path.read_bytes() if stat.S_ISREG(mode) else b""
                found[str(path.relative_to(self.root))] = (mode, hashlib.sha256(content).digest())
        return found

    def test(self, options: Path) -> subprocess.CompletedProcess[str]:
        """Run `basicsr test`, with memory for what is right, and a home folder that is watched."""
        shutil.copy(options, self.work / "test.yml")
        before = self.listing()
        result = subprocess.run(
            basicsr_command("test", "-opt", "test.yml"),
            cwd=self.work,
            env={
                **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                "HOME": str(self.root / "home"),
                "TMPDIR": str(self.root / "tmp"),
                "XDG_CACHE_HOME": str(self.root / "home"),
                "PYTHONDONTWRITEBYTECODE": "1",
                "OMP_NUM_THREADS": "1",
            },
            preexec_fn=_bound,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not (self.root / "ran").exists(), (self.root / "ran").read_text()
        assert self.listing() == before
        return result


def _bound() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "place").mkdir()
    return Place(tmp_path / "place")


def weights(place: Place, state: Any = None) -> dict[str, Any]:
    """The option that names a checkpoint of this content, by default of the right network."""
    from basicsr.archs.edsr_arch import EDSR

    path = place.evil / "net.pth"
    if state is None:
        state = {"params": EDSR(3, 3, num_feat=8, num_block=1, upscale=2).state_dict()}
    torch.save(state, path)
    return {"path:pretrain_network_g": str(path), "path:param_key_g": "params"}


# Each makes files in a place and returns what the option file says.
def imports_by_memcached(place: Place) -> dict[str, Any]:
    backend = {
        "type": "memcached",
        "server_list_cfg": "a",
        "client_cfg": "b",
        "sys_path": str(place.evil),
    }
    return {**weights(place), "datasets:test_1:io_backend": backend}


def imports_from_within_a_checkpoint(place: Place) -> dict[str, Any]:
    options = imports_by_memcached(place)
    path = Path(options["path:pretrain_network_g"])
    with zipfile.ZipFile(path, "a") as archive:
        # Where torch's own reader takes it for one of its files.
        inside = archive.namelist()[0].split("/")[0]
        archive.write(place.evil / "mc.py", f"{inside}/mc.py")
    options["datasets:test_1:io_backend"]["sys_path"] = str(path / inside)
    return options


def makes_a_folder_anywhere(place: Place) -> dict[str, Any]:
    return {**weights(place), "path:extra": str(place.root / "made")}


def has_an_experiment_anywhere(place: Place) -> dict[str, Any]:
    return {**weights(place), "path:experiments_root": str(place.root / "made")}


def climbs_by_its_name(place: Place) -> dict[str, Any]:
    return {**weights(place), "name": "../../made"}


def climbs_by_the_name_of_a_set(place: Place) -> dict[str, Any]:
    return {**weights(place), "datasets:test_1:name": "../../../../made"}


def _lmdb(place: Place, data: Any, **backend: Any) -> dict[str, Any]:
    for side in ("gt", "lq"):
        shutil.copytree(getattr(data, f"train_{side}"), place.evil / f"{side}.lmdb")
    return {
        **weights(place),
        "datasets:test_1:io_backend": {"type": "lmdb", **backend},
        "datasets:test_1:dataroot_gt": str(place.evil / "gt.lmdb"),
        "datasets:test_1:dataroot_lq": str(place.evil / "lq.lmdb"),
        "datasets:test_1:filename_tmpl": "{}",
    }


def lets_an_lmdb_grow(place: Place, data: Any) -> dict[str, Any]:
    return _lmdb(place, data, writemap=True, map_size=1 << 40, readonly=False)


def has_a_child_look_through_a_cut_lmdb(place: Place, data: Any) -> dict[str, Any]:
    options = _lmdb(place, data)
    file = place.evil / "gt.lmdb" / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)
    return options


def pickles_code_into_weights(place: Place) -> dict[str, Any]:
    return weights(place, {"params": RunsCode(place.root / "ran")})


def pickles_code_without_a_zip(place: Place) -> dict[str, Any]:
    options = weights(place)
    content = pickle.dumps({"params": RunsCode(place.root / "ran")})
    Path(options["path:pretrain_network_g"]).write_bytes(content)
    return options


def pickles_code_into_the_weights_of_a_part(place: Place) -> dict[str, Any]:
    torch.save({"params": RunsCode(place.root / "ran")}, place.evil / "spynet.pth")
    network = {
        "type": "BasicVSR",
        "num_feat": 8,
        "num_block": 1,
        "spynet_path": str(place.evil / "spynet.pth"),
    }
    return {**weights(place), "network_g": network}


def has_a_pipe_for_the_weights_of_a_part(place: Place) -> dict[str, Any]:
    os.mkfifo(place.evil / "spynet.pth")
    network = {"type": "SpyNet", "load_path": str(place.evil / "spynet.pth")}
    return {**weights(place), "network_g": network}


def resumes_from_a_crafted_state(place: Place) -> dict[str, Any]:
    group = {"lr": 1e-3, "fused": True, "foreach": True, "capturable": True, "params": [0]}
    state = {
        0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
    }
    crafted = {
        "epoch": 0,
        "iter": 2,
        "optimizers": [{"state": state, "param_groups": [group]}],
        "schedulers": [RunsCode(place.root / "ran")],
    }
    torch.save(crafted, place.evil / "2.state")
    return {**weights(place), "path:resume_state": str(place.evil / "2.state")}


def asks_for_terabytes_by_strides_of_zero(place: Place) -> dict[str, Any]:
    options = weights(place)
    state = torch.load(options["path:pretrain_network_g"], weights_only=True)
    state["params"]["conv_first.weight"] = torch.zeros(1).expand(1 << 20, 3, 1 << 10, 1 << 10)
    return weights(place, state)


def is_a_bomb_of_a_zip(place: Place) -> dict[str, Any]:
    options = weights(place)
    path = Path(options["path:pretrain_network_g"])
    path.unlink()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}))
        archive.writestr("net/data/0", bytes(200 << 20))
    return options


def formats_names_of_gigabytes(place: Place) -> dict[str, Any]:
    return {**weights(place), "datasets:test_1:filename_tmpl": "{:>3000000000}"}


def has_a_pipe_for_a_picture(place: Place, data: Any) -> dict[str, Any]:
    folder = place.evil / "pictures"
    shutil.copytree(data.val_lq, folder)
    (folder / "chelseax2.png").unlink()
    os.mkfifo(folder / "chelseax2.png")
    return {**weights(place), "datasets:test_1:dataroot_lq": str(folder)}


def has_a_pipe_behind_a_list(place: Place, data: Any) -> dict[str, Any]:
    # Pictures of a list are not asked for in pairs.
    (place.evil / "list.txt").write_text("coffee.png\nchelsea.png\n")
    options = has_a_pipe_for_a_picture(place, data)
    return {**options, "datasets:test_1:meta_info_file": str(place.evil / "list.txt")}


def has_a_device_for_a_picture(place: Place, data: Any) -> dict[str, Any]:
    folder = place.evil / "pictures"
    shutil.copytree(data.val_lq, folder)
    (folder / "chelseax2.png").unlink()
    (folder / "chelseax2.png").symlink_to("/dev/zero")
    return {**weights(place), "datasets:test_1:dataroot_lq": str(folder)}


def has_a_pipe_for_weights(place: Place) -> dict[str, Any]:
    os.mkfifo(place.evil / "net.pth")
    return {"path:pretrain_network_g": str(place.evil / "net.pth")}


def forges_lines_by_its_name(place: Place) -> dict[str, Any]:
    return {**weights(place), "name": "a\nbasicsr: all is well\x1b[2J"}


def forges_lines_by_a_key(place: Place) -> dict[str, Any]:
    return {**weights(place), "card": {"a\rbasicsr: all is well\x1b[2J": "x"}}


def forges_lines_by_names_of_tensors(place: Place) -> dict[str, Any]:
    options = weights(place)
    state = torch.load(options["path:pretrain_network_g"], weights_only=True)
    state["params"]["a\nbasicsr: all is well\x1b[2J"] = torch.zeros(1)
    return weights(place, state)


# Each with a word of every line that it ends in: one for each thing that is wrong. Without any, the
# run goes through, since nothing in it reads what the option names.
ATTEMPTS: dict[Callable[..., dict[str, Any]], tuple[str, ...]] = {
    imports_by_memcached: ("memcached is refused",),
    imports_from_within_a_checkpoint: ("memcached is refused",),
    makes_a_folder_anywhere: ("path:extra",),
    has_an_experiment_anywhere: ("path:experiments_root",),
    climbs_by_its_name: ("name",),
    climbs_by_the_name_of_a_set: ("datasets:test_1:name",),
    lets_an_lmdb_grow: ("writemap: lmdb takes no", "map_size: lmdb takes no", "readonly: lmdb"),
    has_a_child_look_through_a_cut_lmdb: ("gt.lmdb",),
    pickles_code_into_weights: ("mkdir",),
    pickles_code_without_a_zip: ("cannot be unpickled",),
    pickles_code_into_the_weights_of_a_part: ("spynet",),
    resumes_from_a_crafted_state: (),
    asks_for_terabytes_by_strides_of_zero: ("claims",),
    is_a_bomb_of_a_zip: ("unpack to",),
    formats_names_of_gigabytes: ("filename_tmpl",),
    has_a_pipe_for_a_picture: ("chelseax2.png",),
    has_a_pipe_behind_a_list: ("chelseax2.png or its partner in dataroot_gt is not a picture",),
    has_a_device_for_a_picture: ("chelseax2.png",),
    has_a_pipe_for_weights: ("is a pipe",),
    has_a_pipe_for_the_weights_of_a_part: ("is a pipe",),
    forges_lines_by_its_name: ("name",),
    forges_lines_by_a_key: ("a key must be without control",),
    forges_lines_by_names_of_tensors: ("all is well\\x1b[2J",),
}


FOUND_IN_THE_RUN = {has_a_child_look_through_a_cut_lmdb}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="pipes, devices and limits of POSIX")
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.__name__)
def test_an_option_file_from_a_stranger_ends_in_one_line_and_leaves_no_file(
    attempt: Callable[..., dict[str, Any]],
    place: Place,
    paired_data: Any,
    write_test_options: WriteOptions,
) -> None:
    data = (paired_data,) if attempt.__code__.co_argcount == 2 else ()
    options = {"datasets:test_1:name": "tiny_val", **attempt(place, *data)}
    result = place.test(write_test_options(options))
    told = ATTEMPTS[attempt]
    # What only reading all of the data can find is found in the run, after its log.
    runs = not told or attempt in FOUND_IN_THE_RUN
    assert result.returncode == (2 if told else 0), result.stderr[-3000:]
    assert (place.work / "results").exists() == runs
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    lines = lines[-1:] if told and runs else lines
    for line, words in zip(lines, told, strict=not runs):
        assert line.startswith("basicsr: error: ") and words in line
        assert line.isprintable()
