import os
import sys

# Before torch is imported: tiny models run faster on one thread, and test processes do not fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing here may leave the machine, nor fill the developer's caches with what is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory):
    """Dataset caches of the tests go where pytest cleans up."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")


@pytest.fixture
def pdiff(monkeypatch, capsys):
    """Runs the command line in this process: exit code, standard output and standard error."""
    from pdiff_hf.cli import main

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pdiff", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
            sys.exit(0)
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return call
