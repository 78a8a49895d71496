"""Freed memory stays with the process."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from stripseg.util import memory
from stripseg.util.memory import (
    MMAP_THRESHOLD,
    TRIM_THRESHOLD,
    give_back_freed_memory,
    glibc,
    keep_freed_memory,
)

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


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(glibc("mallopt") is None, reason="not on glibc")
@pytest.mark.skipif(
    HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="pages are huge"
)
def test_freed_memory_is_used_again() -> None:
    said, pages = probe("keep")
    assert said == "True"
    assert pages < 2**14  # one of the twenty tensors has as many
    assert probe("leave")[1] > 10 * 2**14


@pytest.mark.skipif(glibc("mallopt") is None, reason="not on glibc")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072"),
    ],
)
def test_who_has_set_the_allocator_is_left_alone(variable: str, value: str) -> None:
    assert probe("keep", **{variable: value})[0] == "False"


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert not keep_freed_memory()
    give_back_freed_memory()


@pytest.mark.skipif(glibc("mallopt") is None, reason="not on glibc")
def test_old_glibc_takes_a_lower_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []

    def old_mallopt(option: int, value: int) -> int:
        if option == MMAP_THRESHOLD and value > 2**25:
            return 0
        taken.append((option, value))
        return 1

    monkeypatch.setattr(memory, "glibc", lambda _: old_mallopt)
    assert keep_freed_memory()
    assert taken == [(MMAP_THRESHOLD, 2**25), (TRIM_THRESHOLD, -1)]
