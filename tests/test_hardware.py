"""Tensors of training steps on a CPU lie where large pages are asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import torch
from finetune.hardware import keep_heap

def resident():
    lines = open("/proc/self/smaps_rollup", encoding="ascii").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) // 1024

def flags(address):
    inside = False
    for line in open("/proc/self/smaps", encoding="utf-8"):
        if "-" in (words := line.split())[0] and not words[0].endswith(":"):
            start, end = (int(side, 16) for side in words[0].split("-"))
            inside = start <= address < end
        elif inside and words[0] == "VmFlags:":
            return words[1:]

before = resident()
assert keep_heap()
print(resident() - before, *flags(torch.ones(64 << 20).data_ptr()))
"""


@pytest.fixture(scope="module")
def heap():
    """MB that the heap takes at once, and the flags of the memory in which a tensor lies (proc(5), smaps)."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, *flags = done.stdout.split()
    return int(grown), flags


def test_limited_addresses_are_left_to_others():
    limit = "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 46, r.RLIM_INFINITY))"
    see = 'print(sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) // 1024)'
    script = "\n".join([limit, "from finetune.hardware import keep_heap", see, "keep_heap()", see])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after - before < 100


def test_the_heap_takes_no_memory_before_it_is_used(heap):
    assert heap[0] < 32


def test_large_pages_are_asked_for_where_tensors_lie(heap):
    assert "hg" in heap[1]  # whether the kernel has any is its own affair
