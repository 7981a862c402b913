"""Whatever write fails: an error of one line, nothing is lost, nothing is half left, and it goes again."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from factories import NETWORK, make_dataset, make_layout, make_network, make_pipeline, make_vectors
from pdiff_hf import BaseModel, ParameterDataset, ParameterRecorder
from pdiff_hf.data.importing.importer import import_checkpoints
from pdiff_hf.data.record import finish_recording
from pdiff_hf.data.shards import RECORDING
from pdiff_hf.data.writer import append_rows, save_parameter_dataset
from pdiff_hf.models.kinds import AutoencoderPCAConfig, UNet1DConfig
from pdiff_hf.pipelines.sampling import load_pipeline
from pdiff_hf.runs.generate import generate_networks
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion
from small_datasets import snapshot
from write_faults import full_disk, leftovers

UNET = {"block_out_channels": (16, 16), "train_batch_size": 8, "lr_warmup_steps": 0, "steps": 2}
PCA = {"latent_channels": 4, "latent_length": 2, "allow_poor_reconstruction": True}


def save(folder):
    save_parameter_dataset(make_vectors(6), make_layout(), folder / "out")


def save_with_base(folder):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK).save_weights(make_network(), folder / "out")
    save_parameter_dataset(make_vectors(6), make_layout(), folder / "out", base)


def append(folder):
    append_rows(make_vectors(4), make_layout(), folder / "dataset", columns={"run": ["new"] * 4})


def append_metric(folder):
    columns = {"run": ["new"] * 4, "val_accuracy": [0.5] * 4}
    append_rows(make_vectors(4), make_layout(), folder / "dataset", columns=columns)


def record(folder):
    if (folder / "dataset" / RECORDING).exists():
        finish_recording(folder / "dataset")
    recorder = ParameterRecorder(make_layout(), folder / "dataset", run=f"run {len(runs(folder))}")
    for step, vector in enumerate(make_vectors(3)):
        recorder.record(vector, step=step)
    recorder.close()


def runs(folder):
    return ParameterDataset(folder / "dataset").stats["runs"]


def import_(folder):
    base = BaseModel.imported("pdiff_hf.tasks.networks:mlp3", **NETWORK)
    import_checkpoints(folder / "nets", folder / "out", base_model=base, progress=False)


def generate(folder):
    generate_networks(load_pipeline(folder / "pipeline"), folder / "out", 3, 2)


def save_pipeline(folder):
    make_pipeline("pca").save_pretrained(folder / "out")


def save_pipeline_again(folder):
    make_pipeline().save_pretrained(folder / "pipeline")


def train_pca(folder):
    train_autoencoder(folder / "dataset", folder / "out", AutoencoderPCAConfig(**PCA))


def train_unet(folder):
    config = UNet1DConfig(**UNET, checkpointing_steps=1)
    train_diffusion(folder / "dataset", folder / "autoencoder", folder / "out", config, "latest")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_dataset(folder)
    make_pipeline().save_pretrained(folder / "pipeline")
    (folder / "nets").mkdir()
    for seed in range(3):
        save_file(dict(make_network(seed).state_dict()), folder / "nets" / f"{seed}.safetensors")
    train_autoencoder(folder / "dataset", folder / "autoencoder", AutoencoderPCAConfig(**PCA))
    return folder


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(save, marks=SLOW),
        pytest.param(save_with_base, marks=SLOW),
        append,
        pytest.param(append_metric, marks=SLOW),
        pytest.param(import_, marks=SLOW),
        pytest.param(generate, marks=SLOW),
        pytest.param(save_pipeline, marks=SLOW),
        pytest.param(save_pipeline_again, marks=SLOW),
        pytest.param(train_pca, marks=SLOW),
        pytest.param(train_unet, marks=SLOW),
    ],
)
def test_a_disk_that_is_full_at_any_write_loses_nothing(operation, made, tmp_path):
    for first in range(1, 1000):
        folder = tmp_path / "try"
        shutil.copytree(made, folder)
        before = snapshot(folder)
        try:
            with full_disk(first) as disk:
                operation(folder)
        except (OSError, ValueError) as error:
            assert "No space left" in str(error) and "\n" not in str(error), f"write {first}: {error}"
            assert type(error) in (OSError, ValueError)
            if type(error) is OSError:
                assert error.filename is not None
        else:
            shutil.rmtree(folder)
            if not disk.failed:
                break
            # It can do without, as of a folder that is there already.
            continue
        after = snapshot(folder)
        assert leftovers(folder) == [], f"write {first}"
        changed = [path for path in before if after.get(path) != before[path]]
        if operation is append_metric:
            # The column that all shards have to have.
            changed = [path for path in changed if path.suffix != ".parquet"]
        assert changed == [], f"write {first}"
        assert len(ParameterDataset(folder / "dataset")) == 24
        operation(folder)
        shutil.rmtree(folder)
    assert first > 3


@SLOW
def test_a_recording_on_a_full_disk_keeps_the_rows_that_it_has_taken(made, tmp_path):
    for first in range(1, 1000):
        folder = tmp_path / "try"
        shutil.copytree(made, folder)
        try:
            with full_disk(first) as disk:
                record(folder)
        except OSError as error:
            assert "No space left" in str(error) and error.filename is not None
        else:
            assert not disk.failed
            break
        assert len(ParameterDataset(folder / "dataset")) in (24, 24 + 3), f"write {first}"
        record(folder)
        assert len(ParameterDataset(folder / "dataset")) in (24 + 3, 24 + 6), f"write {first}"
        assert leftovers(folder) == [] and not (folder / "dataset" / RECORDING).exists()
        shutil.rmtree(folder)
    assert first > 3
    assert torch.equal(ParameterDataset(folder / "dataset").vectors(rows=range(24, 27)), make_vectors(3))
