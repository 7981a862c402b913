import subprocess
import sys
import time

import pytest
import torch

from pdiff_hf.machine import (
    THREAD_TRIALS,
    ThreadChoice,
    default_device,
    describe_hardware,
    device_peak,
    free_memory,
    precision_of,
)

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


MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


def precisions():
    return [place.fp32_precision for place in (MATMUL, CUDNN.conv, CUDNN.rnn)]


def uses_tf32():
    return MATMUL.allow_tf32, CUDNN.allow_tf32


def test_training_may_round_products_and_evaluation_may_not():
    before, uses_before = precisions(), uses_tf32()
    with precision_of("training"):
        assert uses_tf32() == (True, True)
        with precision_of("evaluation"):
            assert uses_tf32() == (False, False) and "tf32" not in precisions()
        assert uses_tf32() == (True, True)
    assert precisions() == before and uses_tf32() == uses_before


def test_precision_is_as_the_user_set_it_afterwards(monkeypatch):
    before = precisions()
    MATMUL.fp32_precision = CUDNN.conv.fp32_precision = "ieee"
    try:
        wanted = precisions()
        with pytest.raises(RuntimeError, match="out of memory"), precision_of("training"):
            assert uses_tf32() == (True, True)
            raise RuntimeError("out of memory")
        assert precisions() == wanted
    finally:
        for place, precision in zip((MATMUL, CUDNN.conv, CUDNN.rnn), before, strict=True):
            place.fp32_precision = precision


def test_a_cpu_has_no_memory_of_its_own():
    if default_device().type != "cpu":
        pytest.skip("this machine has an accelerator")
    found = describe_hardware()
    assert found["device"] == "cpu" and found["accelerator"] is None
    assert not {"device_memory_gb", "tf32"} & found.keys()
    assert device_peak() is None and free_memory(torch.device("cpu")) > 0


def test_an_accelerator_is_named(pretended):
    found = describe_hardware()
    assert found["device"] != "cpu" and found["accelerator"] == f"1 × {found['device']}"
    assert device_peak() == 0


def test_the_cpu_is_the_default_where_accelerate_is_told_so(pretended, monkeypatch):
    assert default_device().type != "cpu"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert default_device().type == "cpu" and describe_hardware()["device"] == "cpu"
