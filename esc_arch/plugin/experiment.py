"""The folder of a run: nobody else's meanwhile, and what was there before lost to no mistake."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esc_arch.errors import UserError, printable
from esc_arch.plugin.preflight.reading import walk

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_MADE_BY_RUNS = {"models", "training_states", "visualization"}


class ExperimentFolder:
    """Makes the folders of a run as BasicSR does, with a way back.

    BasicSR renames an experiment of the same name before it builds anything. Where the run then
    cannot begin, `restore` puts the older experiment back in its place. A lock on the folder keeps
    a second run of the name out; on Windows, and on file systems without locks, there is none.
    """

    def __init__(self) -> None:
        self._lock: int | None = None
        self._renamed: list[tuple[Path, Path]] = []

    def make(
        self, make_exp_dirs: Callable[[dict[str, Any]], None], opt: dict[str, Any], opt_file: str
    ) -> None:
        """Call BasicSR's function, unless that would take something away from this run.

        Args:
            make_exp_dirs: BasicSR's; renames an older experiment, and makes folders.
            opt: The parsed options.
            opt_file: The option file, which is read again afterwards.

        Raises:
            UserError: The experiment is in use, or the run needs something that is in it.
        """
        root = _root(opt)
        if opt["rank"] == 0 and root.is_dir():
            self.lock(opt)
            _refuse_own_files(opt, opt_file, root)
            _refuse_other_folders(opt, root)
        before = _archives(root)
        try:
            _once_a_second(make_exp_dirs, opt)
        except OSError as error:
            place = printable(error.filename or root)
            raise UserError(f"{place}: cannot be made: {error.strerror}") from None
        if opt["rank"] == 0:
            self._renamed += [(path, root) for path in _archives(root) - before]
            self.lock(opt)

    def make_tensorboard(self, mkdir_and_rename: Callable[[str], None], path: str) -> None:
        """BasicSR's `mkdir_and_rename`, noted for `restore`."""
        root = Path(path)
        before = _archives(root)
        _once_a_second(mkdir_and_rename, path)
        self._renamed += [(path, root) for path in _archives(root) - before]

    def lock(self, opt: dict[str, Any]) -> None:
        """Keep the experiment to this run, until `release`.

        Raises:
            UserError: Another run has it.
        """
        root = _root(opt)
        if fcntl is None or opt["rank"] != 0 or not root.is_dir():
            return
        descriptor = os.open(root, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            # Ours, of a folder that has been renamed, is another one.
            if self._lock is not None and os.fstat(self._lock).st_ino == root.stat().st_ino:
                return
            raise UserError(
                f"name: {opt['name']}: another run writes into {root} just now; wait for its end, "
                "or give this one another name"
            ) from None
        except OSError:
            os.close(descriptor)
            return
        self.release()
        self._lock = descriptor

    def release(self) -> None:
        """Let others have the experiment."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restore(self) -> None:
        """Put back what was renamed, since the run has not begun."""
        for archived, place in reversed(self._renamed):
            with contextlib.suppress(OSError):
                if place.is_dir():
                    shutil.rmtree(place)
                archived.rename(place)
        self._renamed.clear()

    def keep(self) -> None:
        """The run has begun: what was renamed stays so."""
        self._renamed.clear()


def _root(opt: dict[str, Any]) -> Path:
    return Path(opt["path"]["experiments_root" if opt["is_train"] else "results_root"])


def _once_a_second(rename: Callable[[Any], None], argument: Any) -> None:
    """Let BasicSR rename a folder to a name with the time in it, in seconds, that nobody has."""
    try:
        rename(argument)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        time.sleep(1)
        rename(argument)


def _archives(root: Path) -> set[Path]:
    with contextlib.suppress(OSError):
        return {
            path for path in root.parent.iterdir() if path.name.startswith(f"{root.name}_archived_")
        }
    return set()


def _refuse_other_folders(opt: dict[str, Any], root: Path) -> None:
    """Rename only what a run has made: `path: experiments_root` and `name` may lead anywhere."""
    with contextlib.suppress(OSError):
        names = {path.name for path in root.iterdir()}
        if names and not names & _MADE_BY_RUNS and not any(root.glob("*.log")):
            raise UserError(
                f"name: {opt['name']}: {root} is there and no folder of a run ({min(names)} is in "
                "it); this run would rename it: give it another name"
            )


def _refuse_own_files(opt: dict[str, Any], opt_file: str, root: Path) -> None:
    named = {"-opt": opt_file}
    for path, value in walk(opt):
        # The others under `path` are BasicSR's own folders.
        is_asked = path[0] != "path" or "pretrain" in path[-1] or "resume_state" in path[-1]
        if isinstance(value, str) and value and is_asked:
            named[": ".join(path)] = value
    for option, value in named.items():
        path = Path(value).expanduser().resolve()
        if root.resolve() in (path, *path.parents) and path.exists():
            what = "experiment" if opt["is_train"] else "results"
            resume = opt["is_train"] and not opt["auto_resume"]
            raise UserError(
                f"{option}: {value} is in {root}, which this run would rename, since its name is "
                f"{opt['name']}; copy it out of the {what}, or give the run another name"
                f"{', or go on with --auto_resume' if resume else ''}"
            )
