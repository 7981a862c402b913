import pytest
import torch
from diffusers import DDPMScheduler

from factories import make_dataset, make_layout, make_vectors
from pdiff_hf import AutoencoderIdentity, PDiffPipeline, make_unet_1d
from pdiff_hf.data.order import RowOrder
from pdiff_hf.files import read_json
from pdiff_hf.layout import ParameterLayout, TensorSpec
from pdiff_hf.models.auto import load_autoencoder
from pdiff_hf.models.kinds import AutoencoderIdentityConfig, UNet1DConditionConfig, UNet1DConfig
from pdiff_hf.runs.stages import check_training
from pdiff_hf.training.autoencoder import train_autoencoder
from pdiff_hf.training.diffusion import train_diffusion
from pdiff_hf.training.memory import unet_training_bytes

UNET = {"steps": 2, "block_out_channels": (16, 16), "lr_warmup_steps": 0}


def make_identity(**options):
    autoencoder = AutoencoderIdentity(layout=make_layout().to_dict(), latent_channels=4, **options)
    vectors = make_vectors()
    autoencoder.fit_statistics(vectors)
    autoencoder.set_latent_statistics(autoencoder.encode(vectors).latents)
    return autoencoder.eval()


def test_decode_undoes_encode_up_to_rounding_and_keeps_constants_exactly():
    vectors = make_vectors()
    vectors[:, 7] = 0.3
    autoencoder = AutoencoderIdentity(num_parameters=vectors.shape[1], latent_channels=4)
    autoencoder.fit_statistics(vectors)
    decoded = autoencoder.decode(autoencoder.encode(vectors).latents).sample
    # Two float32 roundings of values of about 1.
    torch.testing.assert_close(decoded, vectors, atol=5e-7, rtol=0)
    assert torch.equal(decoded[:, 7], vectors[:, 7])


def test_consecutive_parameters_are_one_position_and_the_rest_is_zero():
    autoencoder = make_identity()
    channels, length = autoencoder.latent_shape
    num_parameters = make_layout().num_parameters
    assert length % 8 == 0 and channels * length >= num_parameters > channels * (length - 8)
    latents = autoencoder.encode(make_vectors()).latents
    normalized = autoencoder.normalizer.normalize(make_vectors())
    assert torch.equal(latents[:, :, 2], normalized[:, 8:12])
    assert (latents.mT.flatten(1)[:, num_parameters:] == 0).all()


@pytest.mark.parametrize("channels", [1, 4, 32])
def test_any_number_of_channels_takes_the_denoiser_of_four_resolutions(channels):
    autoencoder = AutoencoderIdentity(num_parameters=77, latent_channels=channels)
    unet = make_unet_1d(*autoencoder.latent_shape, (8, 8, 8, 8))
    latents = torch.randn(2, *autoencoder.latent_shape)
    assert unet(latents, torch.tensor([3, 4])).sample.shape == latents.shape


def test_length_that_does_not_hold_all_parameters_is_refused():
    with pytest.raises(ValueError, match=r"at least 77 parameters, got 4 × 16; leave latent_length out"):
        AutoencoderIdentity(num_parameters=77, latent_channels=4, latent_length=16)


@torch.no_grad()
def test_pipeline_saves_and_loads_it_as_a_component(tmp_path):
    autoencoder = make_identity()
    torch.manual_seed(0)
    unet = make_unet_1d(*autoencoder.latent_shape, (16, 16)).eval()
    pipeline = PDiffPipeline(autoencoder, unet, DDPMScheduler(clip_sample=False, prediction_type="v_prediction"))
    pipeline.save_pretrained(tmp_path)
    assert read_json(tmp_path / "model_index.json")["autoencoder"] == ["pdiff_hf", "AutoencoderIdentity"]
    loaded = PDiffPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.autoencoder, AutoencoderIdentity) and loaded.layout == make_layout()
    vectors = []
    for pipe in (pipeline, loaded):
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        vectors.append(pipe(batch_size=2, **options).parameters)
    # HF_FACTS: outputs of a loaded model agree to about 3e-5, not to the bit.
    torch.testing.assert_close(*vectors, atol=5e-5, rtol=0)


@torch.no_grad()
def test_half_precision_keeps_the_normaliser_in_float32(tmp_path):
    make_identity().save_pretrained(tmp_path)
    half = AutoencoderIdentity.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.normalizer.mean.dtype == half.normalizer.std.dtype == torch.float32
    assert half.decode(half.encode(make_vectors()).latents).sample.dtype == torch.float32


def test_both_stages_run_without_an_autoencoder(tmp_path):
    dataset = make_dataset(tmp_path)
    config = AutoencoderIdentityConfig(latent_channels=4, min_explained_variance=0.999999)
    autoencoder, report = train_autoencoder(dataset, tmp_path / "autoencoder", config)
    assert isinstance(autoencoder, AutoencoderIdentity) and report["explained_variance"] > 0.999999
    assert isinstance(load_autoencoder(tmp_path / "autoencoder"), AutoencoderIdentity)
    train_diffusion(dataset, tmp_path / "autoencoder", tmp_path / "pipeline", UNet1DConfig(**UNET))
    pipeline = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipeline.unet.config.sample_size == autoencoder.latent_shape[1]


def test_more_parameters_than_checkpoints_are_not_for_the_denoiser_that_contains_their_gaussian(pdiff, tmp_path):
    dataset = make_dataset(tmp_path)
    options = ["train", dataset, "--out", tmp_path / "run", "--set", "autoencoder.kind=none"]
    code, _, err = pdiff(*options)
    [line] = err.strip().splitlines()
    assert code == 2 and not (tmp_path / "run").exists()
    assert "autoencoder.kind=none: the Gaussian of 256 latent values needs at least 257 checkpoints" in line
    assert 'found 19 without those held out; take an autoencoder, more checkpoints, or --set "diffusion.kind=' in line
    quick = ["diffusion.steps=2", "diffusion.lr_warmup_steps=0", "diffusion.block_out_channels=[16]"]
    code, _, err = pdiff(*options, *(part for key in ("diffusion.kind=unet_1d", *quick) for part in ("--set", key)))
    assert code == 0, err
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()


def test_denoiser_without_an_autoencoder_is_refused_in_python_too(tmp_path):
    config = AutoencoderIdentityConfig(latent_channels=4)
    train_autoencoder(make_dataset(tmp_path), tmp_path / "autoencoder", config)
    with pytest.raises(
        ValueError, match=r"Gaussian of 64 latent values needs at least 65 checkpoints .* kind=unet_1d"
    ):
        train_diffusion(tmp_path / "dataset", tmp_path / "autoencoder", tmp_path / "p", UNet1DConditionConfig())
    assert not (tmp_path / "p").exists()


def test_what_cannot_fit_into_memory_is_refused_before_training():
    layout = ParameterLayout((TensorSpec("weight", (10**9,), 0),))
    with pytest.raises(ValueError, match=r"kind=none: a denoiser of 32 × 31250000 values needs at least [\d.]+ GB"):
        check_training(layout, RowOrder.of_runs(20), AutoencoderIdentityConfig(), UNet1DConfig())


def test_memory_counts_what_the_backward_pass_keeps():
    def needed(length, batch_size, num_rows=0):
        with torch.device("meta"):
            unet = make_unet_1d(4, length, (16, 16))
        return unet_training_bytes(unet, batch_size, num_rows)

    # The same denoiser with values: autograd keeps these tensors for the backward pass.
    unet, kept = make_unet_1d(4, 256, (16, 16)), {}
    owned = {parameter.data_ptr() for parameter in unet.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in owned:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = unet(torch.randn(8, 4, 256), torch.zeros(8)).sample
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    widest = max(tensor.untyped_storage().nbytes() for tensor in kept.values())
    weights = 5 * sum(parameter.nbytes for parameter in unet.parameters())
    assert needed(256, 8) == pytest.approx(activations + widest + 4 * output.nbytes + weights, rel=0.02)
    assert needed(256, 8, 100) - needed(256, 8) == 4 * 4 * 100 * 4 * 256
    growth = [needed(256, size) - needed(256, size // 2) for size in (64, 32)]
    assert growth[0] == pytest.approx(2 * growth[1], rel=0.02)
