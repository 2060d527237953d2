"""How this package starts Python processes of its own: never with the current folder's modules.

`python -c` and `python -m` put the current folder in front of everything that is imported, and so a
`socket.py` or `yaml.py` that lies beside somebody's pictures would run.
"""

import contextlib
import multiprocessing.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# -P exists since Python 3.11. -I also leaves out the environment's variables.
FLAGS = ["-P"] if sys.version_info >= (3, 11) else ["-I"]
_PATH = "import sys; sys.path[:] = {!r}\n"
_MAIN = Path(__file__).with_name("cli") / "__main__.py"


def basicsr_command(*arguments: object) -> list[str]:
    """The command line of `basicsr` with these arguments, for `subprocess`.

    `python -P` does the same from Python 3.11 on; `python -I` would hide what is installed for the
    user only.
    """
    return [sys.executable, str(_MAIN), *map(str, arguments)]


@contextlib.contextmanager
def away_from_the_current_folder() -> Iterator[None]:
    """Within, what `multiprocessing` starts imports nothing from the current folder.

    `multiprocessing` starts Python with `-c`. `PYTHONSAFEPATH` is enough from Python 3.11 on;
    before, the process has to start elsewhere. Its workers come back to the folder by themselves.
    Libraries that are loaded within do not read what lies in the folder either.
    """
    try:
        here = os.getcwd()
    except OSError:
        yield  # It has been removed: there is nothing in it.
        return
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    os.chdir(Path(here).anchor)
    try:
        yield
    finally:
        os.chdir(here)
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def run_python(code: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    """Run code in a Python process of its own, with the modules that this one finds.

    Args:
        code: Python code.
        arguments: What it finds in `sys.argv[1:]`.
    """
    # Without this, -I would not find what PYTHONPATH has.
    path = _PATH.format([entry for entry in sys.path if entry])
    return subprocess.run(
        [sys.executable, *FLAGS, "-c", path + code, *arguments], capture_output=True
    )


def keep_current_folder_out() -> None:
    """Start the processes of `multiprocessing` likewise; they are told this one's paths anyway."""
    args_of = multiprocessing.util._args_from_interpreter_flags
    if getattr(args_of, "keeps_current_folder_out", False):
        return

    def args() -> list[str]:
        found = args_of()
        return found + [flag for flag in FLAGS if flag not in found]

    args.keeps_current_folder_out = True
    multiprocessing.util._args_from_interpreter_flags = args
