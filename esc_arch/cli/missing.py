"""What is said in place of a traceback where a package is missing that not everybody needs."""

import importlib.util

from esc_arch.errors import UserError

NO_BASICSR = "BasicSR is not installed here; this brings it: basicsr install-basicsr"
# Module -> the extra of this package that asks for its distribution.
EXTRAS = {
    **dict.fromkeys(("cv2", "lmdb", "requests", "skimage", "torchvision", "urllib3"), "train"),
    "matplotlib": "plots",
}


def need(*modules: str) -> None:
    """Say what is missing before anything is done.

    Raises:
        UserError: One of these modules, of BasicSR or an extra, is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UserError(how_to_bring(module))


def how_to_bring(module: str | None) -> str | None:
    """One line on a missing module and the extra that asks for it; None for any other module."""
    if module == "basicsr":
        return NO_BASICSR
    extra = EXTRAS.get((module or "").partition(".")[0])
    if extra is None:
        return None
    brings = f"pip install 'esc-arch[{extra}]'"
    return f"{module} is not installed here; this brings it, and what goes with it: {brings}"


def requirements(extra: str) -> list[str]:
    """What an extra of this package asks for, as pip takes it; nothing in a bare checkout."""
    import importlib.metadata
    import re

    try:
        lines = importlib.metadata.requires("esc-arch") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    wanted = re.compile(rf"extra == ['\"]{extra}['\"]")
    return [line.partition(";")[0].replace(" ", "") for line in lines if wanted.search(line)]
