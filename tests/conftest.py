import os
import shutil
import sys

# Before torch is imported: tiny models run faster on one thread, and test processes do not fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing here may leave the machine, nor fill the developer's caches with what is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from filelock import FileLock


def pytest_collection_modifyitems(items):
    """Tests that need an accelerator are skipped where there is none."""
    import torch

    if not torch.accelerator.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no accelerator"))


@pytest.fixture(params=["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)])
def device(request):
    """The devices of this machine, one after the other."""
    import torch

    return torch.device("cpu") if request.param == "cpu" else torch.accelerator.current_accelerator()


@pytest.fixture
def pretended():
    """Counts of an accelerator that is not there, see `pretended_device.py`."""
    pretended_device = pytest.importorskip("pretended_device")
    if not pretended_device.IS_SUPPORTED:
        pytest.skip("this torch cannot register a device in Python, 2.11 and later can")
    with pretended_device.pretended_device() as counts:
        yield counts


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory):
    """Dataset caches of the tests go where pytest cleans up."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """What a test types is not remembered for the next, nor what its commands keep."""
    from pdiff_hf import disk_cache, trust

    folder = tmp_path_factory.mktemp("home") / "pdiff_hf"
    monkeypatch.setattr(trust, "trusted_file", lambda: folder / "trusted.json")
    monkeypatch.setattr(disk_cache, "home_folder", lambda: folder / "graphs")


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


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """Makes a folder once, whichever worker comes to need it first; nobody writes into it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def shared(name, make):
        folder = root / name
        with FileLock(root / f"{name}.lock"):
            if not folder.exists():
                partial = root / f"{name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                make(partial)
                partial.rename(folder)
        return folder

    return shared


@pytest.fixture(scope="session")
def tiny_run(shared_folder):
    """Folder of a finished run of `factories.tiny_recipe()`, not to be written into."""
    from factories import tiny_recipe
    from pdiff_hf.runs.stages import run_recipe

    return shared_folder("tiny-run", lambda folder: run_recipe(tiny_recipe(), folder))


@pytest.fixture
def tiny_run_copy(tiny_run, tmp_path):
    """A copy of it to do anything with."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


@pytest.fixture
def no_figures():
    """See [`factories.without_figures`]."""
    from factories import without_figures

    with without_figures():
        yield
