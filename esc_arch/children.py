"""How this package starts Python processes of its own: never with the current folder's modules.

`python -c` and `python -m` put the current folder in front of everything that is imported, and so a
`socket.py` or `yaml.py` that lies beside somebody's pictures would run.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

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

    It starts Python with `-c`. `PYTHONSAFEPATH` is enough from Python 3.11 on; before, the process
    has to start elsewhere. Its workers come back to the folder by themselves.
    """
    here, before = os.getcwd(), os.environ.get("PYTHONSAFEPATH")
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
