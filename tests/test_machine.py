import subprocess
import sys

import pytest

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
