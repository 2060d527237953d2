"""What the `basicsr` command asks of the C library."""

import os
import platform
import subprocess
import sys

import pytest

TENSORS_ONE_AFTER_ANOTHER = """
import resource
import torch
from esc_arch.cli.memory import keep_freed_memory

print(keep_freed_memory())
for count in (30, 10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(2**24)  # 64 MB, 16,384 pages of 4 KB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_of_the_last_ten(**variables: str) -> tuple[str, int]:
    """New pages that the system handed out, once the gaps are wide enough."""
    run = subprocess.run(
        [sys.executable, "-c", TENSORS_ONE_AFTER_ANOTHER],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages = run.stdout.split()
    return kept, int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_get_the_memory_of_those_before():
    kept, pages = pages_of_the_last_ten()
    assert kept == "True"
    assert pages < 2 * 16_384


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_the_environment_says_stays():
    kept, _ = pages_of_the_last_ten(MALLOC_MMAP_THRESHOLD_="1000000")
    assert kept == "False"
