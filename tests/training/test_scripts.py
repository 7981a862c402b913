import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from factories import make_dataset
from processes import launch_two, run

SCRIPTS = Path(__file__).parents[2] / "training"
SMALL = "--latent_channels 4 --latent_length 2 --min_explained_variance=-100 --lr_warmup_steps 0 --max_train_steps 6"
UNET = "--block_out_channels 16 16 --lr_warmup_steps 0 --max_train_steps 6 --mixed_precision no"


def script(name, *arguments):
    return run(sys.executable, SCRIPTS / name, *arguments)


@pytest.mark.slow
def test_both_stages_from_scripts_make_a_pipeline(tmp_path):
    dataset = make_dataset(tmp_path)
    common = ("--dataset_dir", dataset)
    code, out = script("train_autoencoder.py", *common, "--output_dir", tmp_path / "ae", *SMALL.split(), "--use_ema")
    assert code == 0, out
    code, out = script(
        "train_diffusion.py",
        *common,
        "--autoencoder_dir",
        tmp_path / "ae",
        "--output_dir",
        tmp_path / "p",
        *UNET.split(),
    )
    assert code == 0, out
    assert (tmp_path / "p" / "model_index.json").is_file()


@pytest.mark.slow
def test_bad_flags_and_input_are_one_line_with_code_2(tmp_path):
    code, out = script("train_autoencoder.py", "--dataset_dir", tmp_path / "no", "--output_dir", tmp_path / "ae")
    assert code == 2 and "Error: " in out and "Traceback" not in out
    code, out = script(
        "train_diffusion.py", "--dataset_dir", "a", "--autoencoder_dir", "b", "--output_dir", "c", "--beta_end", "x"
    )
    assert code == 2 and "--beta_end: expected a valid number" in out and "Traceback" not in out


TWO_PROCESSES = """
import sys
from accelerate import Accelerator
from pdiff_hf.models.kinds import AutoencoderPDiffConfig
from pdiff_hf.models.kinds import UNet1DConfig
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion
from pdiff_hf.training.loop import make_accelerator

dataset, output, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = AutoencoderPDiffConfig(steps=10, train_batch_size=batch, latent_channels=4, latent_length=2,
                                lr_warmup_steps=0, min_explained_variance=-100)
accelerator = make_accelerator(config, output + "/ae")
assert accelerator.num_processes == int(sys.argv[4]), accelerator.num_processes
train_autoencoder(dataset, output + "/ae", config, accelerator=accelerator)
# Adam's first steps turn rounding into whole steps where a gradient is tiny; a low rate keeps the curves comparable.
# GroupNorm over the two channels of a group of 16 amplifies rounding a thousandfold.
config = UNet1DConfig(steps=10, train_batch_size=batch, block_out_channels=(64, 64), lr_warmup_steps=0,
                      learning_rate=1e-5)
train_diffusion(dataset, output + "/ae", output + "/p", config)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_train_what_one_trains_on_the_same_global_batch(tmp_path):
    dataset = make_dataset(tmp_path)
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    code, out = run(sys.executable, tmp_path / "script.py", dataset, tmp_path / "one", 8, 1, ACCELERATE_USE_CPU="true")
    assert code == 0, out
    code, out = launch_two(tmp_path / "script.py", dataset, tmp_path / "two", 4, 2)
    assert code == 0, out
    one, two = (load_file(tmp_path / n / "ae" / "diffusion_pytorch_model.safetensors") for n in ("one", "two"))
    for name in one:
        # Sums of gradients in another order.
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=1e-5, msg=name)
    for stage in ("ae", "p"):
        logs = [(tmp_path / n / stage / "train_log.jsonl").read_text().splitlines() for n in ("one", "two")]
        for left, right in zip(*[map(json.loads, log) for log in logs], strict=True):
            assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
            assert left["lr"] == right["lr"]
