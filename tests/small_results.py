"""Evaluations of tiny networks, for tests of what is made of them."""

from functools import partial

import torch
from torch import nn

from pdiff_hf.data.vectors import split_rows
from pdiff_hf.evaluation.baselines import GaussianOfRows, latent_gaussian
from pdiff_hf.evaluation.evaluate import evaluate_groups
from pdiff_hf.evaluation.evaluator import ParameterEvaluator
from pdiff_hf.evaluation.groups import build_groups
from pdiff_hf.layout import ParameterLayout
from pdiff_hf.models.autoencoder_identity import AutoencoderIdentity


def evaluate(num_originals=6, num_generated=5, noise=0.1, apart=False):
    """Linear classifiers of 12 numbers; as many generated ones as asked for and every baseline.

    With `apart`, a third of the originals is held out, and the groups are compared with these as populations.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    layout = ParameterLayout.from_model(model)
    originals = layout.flatten(model) + noise * torch.randn(num_originals, layout.num_parameters)
    generated = originals.mean(0) + noise * torch.randn(num_generated, layout.num_parameters)
    images, labels = torch.randn(80, 3, 2, 2), torch.randint(4, (80,))
    val, test = (ParameterEvaluator(model, layout, images[s], labels[s]) for s in (slice(30), slice(30, None)))
    autoencoder = AutoencoderIdentity(layout=layout.to_dict())
    gaussian = GaussianOfRows(autoencoder.scale_latents(autoencoder.encode_rows(originals)))
    draw_latents = partial(latent_gaussian, gaussian, autoencoder)
    groups, seconds = build_groups(originals, generated, layout, originals, val.accuracy, draw_latents=draw_latents)
    rows = split_rows(num_originals, 3) if apart else None
    return evaluate_groups(groups, val, test, seconds={**seconds, "generated": 3.0}, apart=rows)
