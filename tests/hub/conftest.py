import pytest
import torch
from hub_client import DATA, PIPE, READ_TOKEN, TOKEN, Client
from loopback import LoopbackHub

from factories import NETWORK, make_layout, make_network, make_pipeline
from pdiff_hf import BaseModel
from pdiff_hf.data.writer import save_parameter_dataset
from small_datasets import snapshot


@pytest.fixture(scope="session")
def _hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def hub(_hub):
    """An empty Hub that knows a token for writing and one for reading."""
    _hub.repos.clear()
    _hub.objects.clear()
    _hub.faults.clear()
    _hub.log.clear()
    _hub.tokens = {TOKEN: "write", READ_TOKEN: "read"}
    return _hub


@pytest.fixture(scope="session")
def _client(_hub, tmp_path_factory):
    client = Client(tmp_path_factory.mktemp("client"), _hub.url)
    yield client
    client.close()


@pytest.fixture
def client(_client):
    """The process of the clients, with empty caches."""
    _client("import shutil, os; shutil.rmtree(os.environ['HF_HOME'], ignore_errors=True)")
    return _client


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """Files of a pipeline and a dataset by their names on the Hub."""
    folder = tmp_path_factory.mktemp("artefacts")
    pipeline = make_pipeline()
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(
        make_network(), folder / "source"
    )
    pipeline.base_model = base
    pipeline.save_pretrained(folder / "pipeline")
    vectors = torch.randn(3, make_layout().num_parameters, generator=torch.Generator().manual_seed(0))
    save_parameter_dataset(vectors, make_layout(), folder / "dataset", base)
    found = {
        name: {path.relative_to(folder / name).as_posix(): data for path, data in snapshot(folder / name).items()}
        for name in ("pipeline", "dataset")
    }
    return {**found, "folder": folder}


@pytest.fixture
def repos(hub, artefacts):
    hub.put(PIPE, artefacts["pipeline"])
    hub.put(DATA, artefacts["dataset"], "dataset")
    return hub
