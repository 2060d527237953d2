"""BasicSR's data loading: spawned processes and LMDBs."""

import copyreg
import io
import os
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from esc_arch.plugin.compat.patching import patch, swapped
from esc_arch.prepare.bounds import file_fault
from esc_arch.prepare.lmdb_look import fault_of_reading, is_whole


def datasets_in_spawned_workers(data: ModuleType) -> None:
    """Data-loading workers that are spawned, not forked, import BasicSR without these patches.

    They are with `--launcher` (BasicSR sets it), on macOS and on Windows. A worker unpickles the
    data set, and with it BasicSR, first of all; so the pickle is made to import this package
    before that.
    """

    def wrap(build_dataset: Callable) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            dataset = build_dataset(*args, **kwargs)
            copyreg.pickle(type(dataset), _reduce_after_patches)
            return dataset

        return wrapper

    patch(data, "build_dataset", wrap)


def _reduce_after_patches(dataset: Any) -> tuple:
    make, arguments, *state = dataset.__reduce_ex__(2)
    return (_call, (make, arguments), *state)


def _call(function: Callable, arguments: tuple) -> Any:
    """Unpickling looks this function up first, and so imports this package first."""
    return function(*arguments)


def pictures_bounded(img_util: ModuleType) -> None:
    """BasicSR decodes whatever an LMDB or a file holds: a JPEG of thousands of scans takes minutes.

    Args:
        img_util: `basicsr.utils.img_util`.
    """

    def wrap(imfrombytes: Callable) -> Callable:
        def wrapper(content: Any, *args: Any, **kwargs: Any) -> Any:
            if content is not None and (fault := file_fault(io.BytesIO(content))) is not None:
                raise ValueError(fault)
            return imfrombytes(content, *args, **kwargs)

        return wrapper

    patch(img_util, "imfrombytes", wrap)


def lmdb_opened_twice(file_client: ModuleType) -> None:
    """lmdb 3 refuses to open an environment that its process has open already.

    BasicSR opens one a data set, so two data sets on one LMDB (one to train, one to validate)
    fail. They share one environment instead; it is read-only.
    """
    LmdbBackend = file_client.LmdbBackend

    # Values vanish with the last data set that uses them, as lmdb's own record of them does.
    environments: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
    lock = threading.Lock()

    def wrap(init: Callable) -> Callable:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
            import lmdb

            def open_or_share(path: str, **options: Any) -> Any:
                key = os.path.realpath(path)
                try:
                    environment = lmdb.Environment(path, **options)
                except lmdb.Error:
                    environment = environments.get(key)
                    if environment is None:
                        raise
                if key not in environments:
                    _refuse_truncated_lmdb(environment, path)
                environments[key] = environment
                return environment

            with lock, swapped(lmdb, open=open_or_share):
                init(self, *args, **kwargs)

        return wrapper

    patch(LmdbBackend, "__init__", wrap)


def _refuse_truncated_lmdb(environment: Any, path: str) -> None:
    """Reading beyond the end of a mapped file kills the process, with no word about the file."""
    from esc_arch.errors import UserError

    file = f"{path}/data.mdb" if os.path.isdir(path) else path
    pages = environment.info()["last_pgno"] + 1
    expected, size = pages * environment.stat()["psize"], os.stat(file).st_size
    if size >= expected:
        return
    # Pages at the end that were never written may be free, so another process has to try.
    if not is_whole(path):
        raise UserError(f"{path}: truncated: {size} of {expected} bytes; make it again")


def refuse_unreadable_lmdb(path: str, section: str) -> None:
    """Look an LMDB through in a process of its own, which a crafted one may kill.

    What the LMDB library itself finds wrong is left to whoever opens it.

    Args:
        path: A folder with `data.mdb`.
        section: Of the options that name it, for the error.

    Raises:
        UserError: Reading it kills a process, or has no end.
    """
    from esc_arch.errors import UserError

    try:
        found = os.stat(os.path.join(path, "data.mdb"))
    except OSError:
        return
    key = (os.path.realpath(path), found.st_mtime_ns, found.st_size)
    if key in _looked_through:
        return
    if fault := fault_of_reading(path):
        raise UserError(f"{section}: {path}: damaged: {fault}; make it again")
    _looked_through.add(key)


_looked_through: set[tuple[str, int, int]] = set()
