"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from stripseg.util.memory import keep_freed_memory

def pages() -> int:
    # twenty times 64 MiB, after some that let the heap settle
    for _ in range(10):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory() if sys.argv[1] == "keep" else None, pages())
"""


def probe(word: str, **environment: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, word],
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    said, pages = done.stdout.split()
    return said, int(pages)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again() -> None:
    said, pages = probe("keep")
    if said == "False":
        pytest.skip("no glibc")
    assert pages < 2**14  # one of the twenty tensors has as many
    assert probe("leave")[1] > 10 * 2**14


def test_who_has_set_the_allocator_is_left_alone() -> None:
    assert probe("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
