import subprocess
import sys
import time

import pytest
import torch

from pdiff_hf.machine import THREAD_TRIALS, ThreadChoice

# Blocks of 6 MB are freed while small ones behind them stay.
SCRIPT = """
import pathlib, sys
from pdiff_hf.machine import return_large_blocks
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
import numpy as np
if sys.argv[1] == "yes":
    return_large_blocks()
np.ones(31 * 2**20, np.uint8)  # freed at once: from now on, blocks as large as this come from the heap
before, kept = resident(), []
large = [(np.ones(6 * 2**20, np.uint8), kept.append(np.ones(4096, np.uint8))) for _ in range(20)]
del large
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_blocks_go_back_to_the_system():
    kept = {}
    for answer in ("yes", "no"):
        run = subprocess.run([sys.executable, "-c", SCRIPT, answer], capture_output=True, text=True, check=True)
        kept[answer] = int(run.stdout)
    assert kept["yes"] < 2**21
    if kept["no"] < 100 * 2**20:
        pytest.skip("this allocator gives them back anyway")


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("seconds", "taken"), [({1: 0.001, 2: 0.004}, 1), ({1: 0.004, 2: 0.001}, 2)])
def test_training_takes_the_threads_that_are_faster(two_threads, seconds, taken):
    choice, used = ThreadChoice("cpu"), []
    for _ in range(2 * THREAD_TRIALS + 3):
        with choice.step():
            used.append(torch.get_num_threads())
            time.sleep(seconds[used[-1]])
        assert torch.get_num_threads() == 2
    assert sorted(used[: 2 * THREAD_TRIALS]) == [1] * THREAD_TRIALS + [2] * THREAD_TRIALS
    assert used[-3:] == [taken] * 3 and str(choice) == f"{taken} of 2 threads"


def test_threads_that_are_given_are_not_tried(two_threads, monkeypatch):
    with ThreadChoice("cpu", threads=1).step():
        assert torch.get_num_threads() == 1
    for choice in (ThreadChoice("cuda"), ThreadChoice("cpu", threads=2)):
        with choice.step():
            assert torch.get_num_threads() == 2 and choice.taken == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    used = []
    choice = ThreadChoice("cpu")
    for _ in range(3):
        with choice.step():
            used.append(torch.get_num_threads())
    assert used == [2, 2, 2]
