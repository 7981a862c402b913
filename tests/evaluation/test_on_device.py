"""What is given networks on an accelerator, the pretended one, gives what it gives on the CPU, where they are."""

from functools import partial

import pytest
import torch
from test_batch_norm import Branching, NotExportable, make_images, make_model, perturbed

from factories import make_autoencoder, make_layout, make_network, make_pipeline, make_vectors
from pdiff_hf.evaluation.baselines import (
    averages,
    gaussian,
    interpolations,
    noised_originals,
    pca_gaussian,
    swag,
    uniform_soup,
)
from pdiff_hf.evaluation.batch_norm import BatchNormEstimator
from pdiff_hf.evaluation.choice import choose_networks
from pdiff_hf.evaluation.distribution import compare_distributions
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.matching import align, match, nearest_matched_distance
from pdiff_hf.evaluation.permutations import permutation_spec
from pdiff_hf.evaluation.similarity import gram_matrix, measure_nearness, nearest_distance, squared_distances
from pdiff_hf.evaluation.trajectory import PrincipalPlane, trajectory
from pdiff_hf.layout import ParameterLayout
from pretended_device import NAME


def evaluator(device):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, 4, 1, 1, generator=generator), torch.arange(40) % 3
    return ParameterEvaluator(make_network(), make_layout(), images, labels, device=device)


def chosen(device):
    choice = choose_networks(evaluator(device), make_vectors().to(device), top=3)
    return choice.vectors, choice.score.to(device)


def estimated(kind):
    def estimate(device):
        model = make_model(kind)
        layout = ParameterLayout.from_model(model, "first.*")
        estimator = BatchNormEstimator(model, layout, make_images(), batch_size=10, device=device)
        return estimator.extend(perturbed(model, layout).to(device))

    return estimate


def of_trajectory(device):
    found = trajectory(make_pipeline().to(device), evaluator(device), make_vectors().to(device), 2, 3)
    return torch.tensor([*found["noisy"]["distance"], *found["predicted"]["distance"]]).to(device)


def of_distributions(device):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 3, generator=generator)
    groups = {"generated": torch.randn(30, 3, generator=generator).to(device)}
    found = compare_distributions(groups, rows.to(device), 4)
    return torch.tensor([[one.two_sample_accuracy, one.mmd_p, one.coverage] for one in found.values()]).to(device)


def nearness(found, device):
    return found.distance, found.cosine, torch.tensor(found.spread).to(device)


MEASURED = {
    "choose_networks": chosen,
    "BatchNormEstimator": estimated(Branching),
    "BatchNormEstimator without export": estimated(NotExportable),
    "trajectory": of_trajectory,
    "compare_distributions": of_distributions,
    "PrincipalPlane": lambda device: PrincipalPlane(make_vectors().to(device)).project(
        make_vectors(seed=1).to(device)
    ),
}
# Functions of two sets of networks.
PAIRED = {
    "nearest_distance": nearest_distance,
    "measure_nearness": lambda a, b: nearness(measure_nearness(a, b), a.device),
    "squared_distances": squared_distances,
    "gram_matrix": lambda a, b: gram_matrix(a, make_autoencoder().to(a.device).normalizer).to(a.device),
    "match": lambda a, b: match(a, b[0], permutation_spec(make_network(), make_layout())),
    "align": lambda a, b: align(a, b[0], permutation_spec(make_network(), make_layout())),
    "nearest_matched_distance": lambda a, b: nearest_matched_distance(
        a, b, permutation_spec(make_network(), make_layout())
    ),
}
DRAWN = {
    "noised_originals": partial(noised_originals, sigma=0.1),
    "averages": lambda originals, layout, num, generator: averages(originals, num, generator, 4),
    "interpolations": lambda originals, layout, num, generator: interpolations(originals, num, generator),
    "gaussian": gaussian,
    "pca_gaussian": pca_gaussian,
    "swag": partial(swag, rank=4),
    "uniform_soup": lambda originals, *_: uniform_soup(originals),
}
MEASURED |= {
    name: lambda device, draw=draw: draw(make_vectors().to(device), make_layout(), 5, torch.Generator().manual_seed(0))
    for name, draw in DRAWN.items()
}
MEASURED |= {
    name: lambda device, function=function: function(make_vectors(6, 1).to(device), make_vectors().to(device))
    for name, function in PAIRED.items()
}


@pytest.mark.filterwarnings("ignore:NotExportable cannot be exported")
@pytest.mark.parametrize("measured", MEASURED.values(), ids=MEASURED)
def test_results_are_those_of_the_cpu(request, measured):
    expected = measured("cpu")
    request.getfixturevalue("pretended")
    found = measured(NAME)
    for one, other in zip(
        *((values,) if torch.is_tensor(values) else values for values in (found, expected)), strict=True
    ):
        assert one.device.type == NAME
        torch.testing.assert_close(one.cpu(), other, equal_nan=True)
