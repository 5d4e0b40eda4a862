"""Tensors of training steps on a CPU lie in large pages where the kernel has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

MEASURE = """
import torch
from finetune.hardware import keep_heap

def resident(name):
    lines = open("/proc/self/smaps_rollup", encoding="ascii").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) // 1024

before = resident("Rss")
assert keep_heap()
grown = resident("Rss") - before
tensor = torch.ones(64 << 20)
print(grown, resident("AnonHugePages"))
"""


@pytest.fixture(scope="module")
def heap():
    """MB that the heap takes at once, and MB in large pages with a tensor of 256."""
    if sys.platform != "linux":
        pytest.skip("the heap is kept with glibc alone")
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def test_limited_addresses_are_left_to_others():
    limit = "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 46, r.RLIM_INFINITY))"
    see = 'print(sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) // 1024)'
    script = "\n".join([limit, "from finetune.hardware import keep_heap", see, "keep_heap()", see])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after - before < 100


def test_the_heap_takes_no_memory_before_it_is_used(heap):
    assert heap[0] < 32


def test_tensors_lie_in_large_pages(heap):
    if not LARGE_PAGES.is_file() or "[never]" in LARGE_PAGES.read_text(encoding="ascii"):
        pytest.skip("the kernel has no large pages")
    assert heap[1] >= 128
