import pytest
import torch
from diffusers import DDPMScheduler

from functional_zoo import make_images, make_layout, make_network, make_vectors
from pdiff_hf import AutoencoderFunctional, PDiffPipeline
from pdiff_hf.models.function_decoder import FunctionDecoder
from pdiff_hf.models.function_encoder import FunctionEncoder, explained_shares
from pdiff_hf.models.functions import analogies
from pdiff_hf.models.kinds import UNet1DConditionConfig
from pdiff_hf.networks import mlp3


def make_autoencoder(vectors=None, probabilities=False, **options):
    torch.manual_seed(0)
    options = {"latent_channels": 6, "hidden": (16,), "rank": 4, **options}
    autoencoder = AutoencoderFunctional(layout=make_layout().to_dict(), **options)
    vectors = make_vectors() if vectors is None else vectors
    autoencoder.fit(vectors, make_images(), make_network(0), probabilities=probabilities)
    return autoencoder.eval()


def permuted(vector):
    """The same network, the units of its first hidden layer in another order."""
    tensors = make_layout().unflatten(vector)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for name in ("1.weight", "1.bias"):
        tensors[name] = tensors[name][order]
    tensors["3.weight"] = tensors["3.weight"][:, order]
    return make_layout().flatten(tensors)


def test_the_order_of_hidden_units_plays_no_part():
    autoencoder, vectors = make_autoencoder(), make_vectors(2)
    other = torch.stack([permuted(vector) for vector in vectors])
    assert (other - vectors).norm() > 0.5 * vectors.norm()
    assert torch.allclose(autoencoder.encode(other).latents, autoencoder.encode(vectors).latents, atol=1e-4)


def test_latents_of_the_training_networks_have_mean_0_and_variance_1_and_no_covariance():
    latents = make_autoencoder().encode_rows(make_vectors()).flatten(1)
    assert torch.allclose(latents.mean(0), torch.zeros(6), atol=1e-4)
    assert torch.allclose(torch.cov(latents.T), torch.eye(6), atol=1e-3)


def test_latents_of_a_combination_of_functions_are_the_combination_of_latents():
    autoencoder = make_autoencoder()
    functions = autoencoder._functions.of(make_vectors(), autoencoder.encoder.probes)
    weights = torch.randn(20, generator=torch.Generator().manual_seed(0))
    weights = weights / weights.sum()
    combined = autoencoder.encoder(torch.einsum("k,kpc->pc", weights, functions)[None])
    assert torch.allclose(combined[0], weights @ autoencoder.encoder(functions), atol=1e-3)


def test_all_components_tell_the_distances_of_functions():
    autoencoder = make_autoencoder(latent_channels=19)
    vectors = make_vectors()
    functions = autoencoder._functions.of(vectors, autoencoder.encoder.probes).flatten(1)
    scores = autoencoder.encode_rows(vectors).flatten(1) * autoencoder.latent_deviations
    assert torch.allclose(torch.cdist(scores, scores), torch.cdist(functions, functions), rtol=1e-3, atol=1e-3)


def test_of_probabilities_latents_are_those_of_analogies_as_well():
    # More of them than the 20 networks span.
    autoencoder = make_autoencoder(probabilities=True, latent_channels=40)
    probabilities = autoencoder._functions.of(make_vectors(), autoencoder.encoder.probes).softmax(-1)
    assert torch.equal(autoencoder.values(make_vectors()), probabilities)
    rows = torch.randint(20, (400, 3), generator=torch.Generator().manual_seed(7))
    scores = autoencoder.encoder.scores(analogies(probabilities, rows))
    assert torch.allclose(scores.std(0), torch.ones(40), atol=0.5)
    seen = autoencoder.encode_rows(make_vectors()).flatten(1)
    assert seen.square().sum(1).mean() < 0.8 * scores.square().sum(1).mean()


def test_saved_and_loaded_it_knows_that_it_compares_probabilities(tmp_path):
    autoencoder = make_autoencoder(probabilities=True)
    autoencoder.save_pretrained(tmp_path)
    loaded = AutoencoderFunctional.from_pretrained(tmp_path)
    loaded.connect(make_network(7))
    latents = loaded.encode(make_vectors(3)).latents
    assert torch.allclose(latents, autoencoder.encode(make_vectors(3)).latents, atol=1e-5)
    assert not torch.allclose(latents, make_autoencoder().encode(make_vectors(3)).latents, atol=0.1)


def test_a_new_one_decodes_to_its_reference_plus_an_offset_that_depends_on_the_latents():
    autoencoder = make_autoencoder()
    decoded = autoencoder.decode(torch.randn(2, 6, 1)).sample
    assert decoded.shape == (2, make_layout().num_parameters) and not torch.equal(*decoded)
    with torch.no_grad():
        for parameter in autoencoder.decoder.parameters():
            parameter.zero_()
    reference = autoencoder.decode(torch.randn(1, 6, 1)).sample
    assert (reference - make_vectors()).abs().amax(1).min() < 1e-5


def test_saved_and_loaded_it_decodes_alone_and_encodes_once_it_is_connected(tmp_path):
    autoencoder = make_autoencoder()
    latents = autoencoder.encode(make_vectors(3)).latents
    autoencoder.save_pretrained(tmp_path)
    loaded = AutoencoderFunctional.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(latents).sample, autoencoder.decode(latents).sample)
    with pytest.raises(ValueError, match=r"was given its base network.*call autoencoder.connect"):
        loaded.encode(make_vectors(3))
    loaded.connect(make_network(7))
    assert torch.allclose(loaded.encode(make_vectors(3)).latents, latents, atol=1e-5)


def test_in_half_precision_it_encodes_as_before():
    autoencoder = make_autoencoder()
    latents = autoencoder.encode(make_vectors(3)).latents
    autoencoder.to(torch.bfloat16)
    assert autoencoder.encoder.basis.dtype == torch.float32
    assert torch.equal(autoencoder.encode(make_vectors(3)).latents, latents)
    assert autoencoder.decode(latents).sample.dtype == torch.float32


def test_a_pipeline_draws_networks_from_it(tmp_path):
    autoencoder = make_autoencoder()
    latents = autoencoder.encode_rows(make_vectors())
    autoencoder.set_latent_statistics(latents, 0.5)
    config = UNet1DConditionConfig(block_out_channels=(16,))
    unet, scheduler = config.build((6, 1)), DDPMScheduler(clip_sample=False, prediction_type="v_prediction")
    unet.fit_gaussian(autoencoder.scale_latents(latents), scheduler)
    PDiffPipeline(autoencoder, unet, scheduler).save_pretrained(tmp_path)
    pipeline = PDiffPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=3, num_inference_steps=20, output_type="pt").parameters
    assert drawn.shape == (3, make_layout().num_parameters) and drawn.isfinite().all()


@pytest.mark.parametrize("whitening", [0.0, 0.5])
def test_whitening_divides_by_a_power_of_what_functions_vary_by(whitening):
    autoencoder = make_autoencoder()
    latents = autoencoder.encode_rows(make_vectors())
    autoencoder.set_latent_statistics(latents, whitening)
    spread = autoencoder.scale_latents(latents).flatten(1).std(0)
    expected = autoencoder.latent_deviations ** (1 - whitening)
    assert torch.allclose(spread / spread[0], expected / expected[0], rtol=1e-2)


def test_too_few_networks():
    with pytest.raises(ValueError, match="6 latent values need at least 7 training checkpoints, got 5"):
        make_autoencoder(make_vectors(5))


def test_networks_that_compute_one_function_are_refused():
    vectors = make_vectors(1).repeat(8, 1)
    vectors[::2] = permuted(vectors[0])
    with pytest.raises(ValueError, match="different functions, found that the 8 training rows give the same outputs"):
        make_autoencoder(vectors)


def test_functions_of_too_few_dimensions_are_refused():
    functions = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 40)
    with pytest.raises(ValueError, match=r"span 6 latent values, found 3; .*latent_channels"):
        FunctionEncoder(6, (10, 1), 4).fit(functions.view(12, 10, 4))


def test_networks_without_finite_outputs_are_refused():
    vectors = make_vectors(8)
    vectors[3] = 1e30
    with pytest.raises(ValueError, match="finite outputs on the probe inputs, found others of training row 3"):
        make_autoencoder(vectors)


def test_another_base_network_is_refused():
    autoencoder = make_autoencoder()
    with pytest.raises(ValueError, match=r"tensor .*: expected shape \(10, 5\), found \(3, 5\)"):
        autoencoder.connect(mlp3(64, (6, 5), 3))


def test_probes_of_another_size_are_refused():
    autoencoder = AutoencoderFunctional(layout=make_layout().to_dict(), latent_channels=6)
    with pytest.raises(ValueError, match="inputs that the base model takes"):
        autoencoder.fit(make_vectors(), torch.randn(30, 1, 9, 9), make_network(0))


def test_one_that_was_not_fitted_says_so():
    autoencoder = AutoencoderFunctional(layout=make_layout().to_dict())
    with pytest.raises(ValueError, match="call fit"):
        autoencoder.connect(make_network(0))
    with pytest.raises(ValueError, match="call fit"):
        autoencoder.encode(make_vectors())


def test_shares_of_the_variance_are_those_of_the_singular_values():
    functions = torch.randn(9, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(functions.flatten(1) - functions.flatten(1).mean(0))[:8].square()
    assert torch.allclose(explained_shares(functions), values / values.sum())


SHAPES = [(6, 64), (6,), (5, 6), (5,), (2, 3, 3, 3), (), (3, 0)]


def test_offsets_of_matrices_have_the_rank_and_all_else_is_written_value_by_value():
    torch.manual_seed(0)
    decoder = FunctionDecoder(SHAPES, 4, (16,), 4, 64)
    first, second = decoder(torch.randn(2, 4))
    assert len(first) == 6 * 64 + 6 + 5 * 6 + 5 + 54 + 1
    matrix = (first - second)[: 6 * 64].view(6, 64)
    values = torch.linalg.svdvals(matrix)
    assert (values[:4] > 1e-3).all() and (values[4:] < 1e-5 * values[0]).all()
    assert (first - second).ne(0).all()


def test_memory_bounds_the_rank():
    shapes = [(200, 3000), (10, 200)]
    wide, narrow = (FunctionDecoder(shapes, 8, (64,), 32, max_mb) for max_mb in (64, 1))
    sizes = [sum(4 * weight.numel() for weight in decoder.parameters()) for decoder in (wide, narrow)]
    assert sizes[1] <= 2**20 < sizes[0] <= 64 * 2**20
    assert narrow(torch.randn(2, 8)).shape == (2, 602_000)
    with pytest.raises(ValueError, match=r"decoder of 200010000 parameters, max_decoder_mb of \d+ or more, found 1"):
        FunctionDecoder([(20000, 10000), (10000,)], 8, (64,), 32, 1)
