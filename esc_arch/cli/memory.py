"""How the process gets its memory from the operating system."""

import os

# glibc's mallopt: https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of large tensors that are freed, for the next ones.

    It gives each of more than 32 MB back at once, and the system hands out the next one page by
    page, each filled with zeros first. With large images that takes as long as a third of all else.

    Returns:
        Whether it does; not with another C library, nor where the environment says otherwise.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, LARGEST))
