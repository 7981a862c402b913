import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors.torch import load_file, save_file

from factories import LATENTS, make_autoencoder, make_layout, make_vectors
from pdiff_hf import AutoencoderPCA, AutoencoderPDiff
from pdiff_hf.models.autoencoder_pca import principal_components
from pdiff_hf.models.normalizer import ParameterNormalizer

KINDS = {"pdiff": AutoencoderPDiff, "pca": AutoencoderPCA}


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    return request.param


@torch.no_grad()
def test_encode_and_decode_shapes(kind):
    autoencoder = make_autoencoder(kind)
    latents = autoencoder.encode(make_vectors(5)).latents
    assert latents.shape == (5, 4, 2)
    assert autoencoder.decode(latents).sample.shape == (5, make_layout().num_parameters)
    assert torch.equal(autoencoder.encode(make_vectors(5), return_dict=False)[0], latents)


@torch.no_grad()
def test_save_and_load_agree(kind, tmp_path):
    autoencoder = make_autoencoder(kind)
    autoencoder.save_pretrained(tmp_path)
    loaded = KINDS[kind].from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.layout == make_layout()
    assert loaded.config.scaling_factor == autoencoder.config.scaling_factor
    expected, found = (a.decode(a.encode(make_vectors()).latents).sample for a in (autoencoder, loaded))
    # HF_FACTS: outputs of a loaded model agree to about 3e-5, not to the bit.
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


@torch.no_grad()
def test_half_precision_keeps_the_normaliser_in_float32(kind, tmp_path):
    make_autoencoder(kind).save_pretrained(tmp_path)
    half = KINDS[kind].from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.normalizer.mean.dtype == half.normalizer.std.dtype == torch.float32
    sample = half.decode(half.encode(make_vectors()).latents).sample
    assert sample.dtype == torch.float32
    # bfloat16 keeps 8 bits of deviations of about 0.3 from the mean.
    assert (sample - make_vectors()).abs().mean() < 0.01


@torch.no_grad()
def test_one_row_equals_its_row_of_a_batch(kind):
    autoencoder = make_autoencoder(kind)
    latents = autoencoder.encode(make_vectors()).latents
    torch.testing.assert_close(autoencoder.encode(make_vectors()[3:4]).latents, latents[3:4], atol=2e-5, rtol=0)
    torch.testing.assert_close(
        autoencoder.decode(latents[3:4]).sample, autoencoder.decode(latents).sample[3:4], atol=2e-5, rtol=0
    )


@torch.no_grad()
def test_scaled_latents_of_the_dataset_have_mean_0_and_deviation_1(kind):
    autoencoder = make_autoencoder(kind)
    latents = autoencoder.encode(make_vectors()).latents
    scaled = autoencoder.scale_latents(latents)
    assert scaled.mean().abs() < 1e-5 and scaled.std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(autoencoder.unscale_latents(scaled), latents)
    torch.testing.assert_close(autoencoder.latent_mean, latents.mean(0))


def test_wrong_shapes_are_refused_with_the_expected_ones(kind):
    autoencoder = make_autoencoder(kind)
    with pytest.raises(ValueError, match=rf"\(B, {make_layout().num_parameters}\), got \(2, 7\)"):
        autoencoder.encode(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"\(B, 4, 2\), got \(2, 2, 4\)"):
        autoencoder.decode(torch.zeros(2, 2, 4))


def test_fewer_checkpoints_than_latent_values_are_refused(kind):
    autoencoder = make_autoencoder(kind)
    with pytest.raises(ValueError, match="8 latent values need at least 9 training checkpoints, got 8"):
        autoencoder.fit_statistics(make_vectors(8))


def test_checkpoints_that_span_too_few_directions_are_refused(kind):
    autoencoder = make_autoencoder(kind)
    with pytest.raises(ValueError, match="span only"):
        autoencoder.fit_statistics(make_vectors(5).repeat(4, 1))


def test_exactly_one_of_num_parameters_and_layout(kind):
    with pytest.raises(ValueError, match="exactly one"):
        KINDS[kind](**LATENTS)


@torch.no_grad()
def test_pca_equals_the_singular_value_decomposition():
    vectors = make_vectors()
    autoencoder = AutoencoderPCA(num_parameters=vectors.shape[1], normalization="per_tensor", **LATENTS)
    autoencoder.fit_statistics(vectors)
    mean = vectors.mean(0)
    basis = torch.linalg.svd((vectors - mean).double(), full_matrices=False)[2][:8]
    expected = mean + ((vectors - mean).double() @ basis.T @ basis).float()
    # float32 products of values below 1 over 8 components.
    torch.testing.assert_close(
        autoencoder.decode(autoencoder.encode(vectors).latents).sample, expected, atol=1e-5, rtol=0
    )
    basis = autoencoder.components.basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(8), atol=1e-5, rtol=0)


def test_pca_in_column_blocks_equals_pca_in_one(monkeypatch):
    autoencoder = make_autoencoder("pca")
    whole = principal_components(make_vectors(), autoencoder.normalizer, 8)
    monkeypatch.setattr("pdiff_hf.models.autoencoder_pca.BLOCK_VALUES", 24 * 7)
    for blocked, expected in zip(principal_components(make_vectors(), autoencoder.normalizer, 8), whole, strict=True):
        torch.testing.assert_close(blocked, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_wide", [False, True])
def test_pca_of_many_checkpoints_is_the_same(is_wide, monkeypatch):
    # By the covariance where it is smaller than the Gram matrix, and by Lanczos' method.
    vectors = torch.randn(90, 60, generator=torch.Generator().manual_seed(0)) @ torch.linspace(3, 0.1, 60).diag() + 1
    vectors = vectors.T.contiguous() if is_wide else vectors
    normalizer = ParameterNormalizer(vectors.shape[1], "per_tensor")
    normalizer.fit(vectors)
    mean, basis, deviations = principal_components(vectors, normalizer, 8)
    monkeypatch.setattr("pdiff_hf.models.autoencoder_pca.MAX_SNAPSHOTS", 40)
    found_mean, found_basis, found_deviations = principal_components(vectors, normalizer, 8)
    torch.testing.assert_close(found_mean, mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(found_deviations, deviations)
    torch.testing.assert_close((found_basis @ basis.T).abs(), torch.eye(8), atol=1e-4, rtol=0)
    assert torch.equal(principal_components(vectors, normalizer, 8)[1], found_basis)


@torch.no_grad()
def test_fast_preset_starts_at_the_principal_components():
    fast = make_autoencoder("pdiff", normalization="per_parameter")
    pca = make_autoencoder("pca", normalization="per_parameter")
    reconstructed = [a.decode(a.encode(make_vectors()).latents).sample for a in (fast, pca)]
    torch.testing.assert_close(*reconstructed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_training_step_gives_every_parameter_a_gradient(preset):
    layout = make_layout()
    torch.manual_seed(0)
    autoencoder = AutoencoderPDiff.from_preset(preset, layout=layout.to_dict(), **LATENTS)
    autoencoder.normalizer.fit(make_vectors())
    autoencoder.train()
    noise = torch.randn(8, layout.num_parameters), torch.randn(8, 4, 2)
    autoencoder(make_vectors(8), *noise).loss.backward()
    without = [name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_forward_loss_is_the_error_of_the_normalised_vectors_with_scaled_noise():
    autoencoder = make_autoencoder("pdiff", input_noise=0.5, latent_noise=2.0)
    vectors = make_vectors(6)
    generator = torch.Generator().manual_seed(0)
    input_noise, latent_noise = torch.randn(vectors.shape, generator=generator), torch.randn(6, 4, 2)
    output = autoencoder(vectors, input_noise, latent_noise)
    normalizer = autoencoder.normalizer
    noisy = normalizer.denormalize(normalizer.normalize(vectors) + 0.5 * input_noise)
    latents = autoencoder.encode(noisy).latents
    sample = autoencoder.decode(latents + 2.0 * latent_noise).sample
    expected = (normalizer.normalize(sample) - normalizer.normalize(vectors)).square().mean()
    torch.testing.assert_close(output.latents, latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.loss, expected, atol=1e-4, rtol=1e-3)


def test_paper_preset_is_the_papers():
    autoencoder = AutoencoderPDiff.from_preset("paper", num_parameters=2048, latent_channels=1, latent_length=128)
    convolutions = [m for m in autoencoder.encoder if isinstance(m, torch.nn.Conv1d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 256, 32]
    assert {(c.kernel_size, c.stride) for c in convolutions} == {((7,), (2,))}
    assert autoencoder.encoder[-1].out_features == 128
    assert autoencoder.config.normalization == "per_tensor"


def test_batch_norm_does_not_make_inference_depend_on_the_batch():
    torch.manual_seed(0)
    autoencoder = AutoencoderPDiff.from_preset("paper", layout=make_layout().to_dict(), **LATENTS)
    autoencoder.normalizer.fit(make_vectors())
    autoencoder.train()
    autoencoder(make_vectors())
    autoencoder.eval()
    latents = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = autoencoder.decode(latents).sample
        alone = torch.cat([autoencoder.decode(row[None]).sample for row in latents])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "norm must be"),
        ({"encoder_act": "sinus"}, "an activation must be one of"),
        ({"normalization": "none"}, "normalization must be one of"),
        ({"kernel_size": 2, "stride": 4}, "kernel_size >= stride"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderPDiff(num_parameters=16, **LATENTS, **options)


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"one of \['fast', 'paper'\], got 'quick'"):
        AutoencoderPDiff.from_preset("quick", num_parameters=16)


@pytest.mark.parametrize("kernel_size", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("length", [16, 17, 63])
def test_every_length_is_decoded_to_itself(kernel_size, length):
    autoencoder = AutoencoderPDiff(
        num_parameters=length, channels=(8, 8), kernel_size=kernel_size, stride=4, linear_path=False, **LATENTS
    )
    assert autoencoder(torch.zeros(2, length)).sample.shape == (2, length)


@pytest.mark.parametrize("cls", [AutoencoderPDiff, AutoencoderPCA])
def test_weights_of_another_version_are_refused(tmp_path, cls):
    """diffusers leaves missing tensors as they are initialised: every network would be the mean."""
    model = cls(num_parameters=12, latent_channels=2, latent_length=2)
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.startswith("components."))
    save_file({"old." + key if key == name else key: tensor for key, tensor in weights.items()}, file)
    with pytest.raises(ValueError, match="another version wrote it"):
        cls.from_pretrained(tmp_path)


class OffloadedModel(ModelHook):
    """As `enable_model_cpu_offload` has it: moves a model where it computes, before it does."""

    def __init__(self):
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


@torch.no_grad()
def test_encode_and_decode_bring_an_offloaded_model_back(kind):
    autoencoder = make_autoencoder(kind)
    add_hook_to_module(autoencoder, hook := OffloadedModel())
    latents = autoencoder.encode(make_vectors(2)).latents
    assert hook.calls == 1
    autoencoder.decode(latents)
    assert hook.calls == 2
