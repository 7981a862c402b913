import pytest
import timm
import torch

from factories import make_autoencoder, make_vectors
from pdiff_hf import AutoencoderPCA, BaseModel, ParameterLayout
from pdiff_hf.evaluation import reconstruction
from pdiff_hf.evaluation.reconstruction import explained_by_kind, explained_variances, poor_kinds
from pdiff_hf.evaluation.tensor_kinds import KINDS, column_kinds
from pdiff_hf.models import autoencoder_pca
from pdiff_hf.models.kinds import AutoencoderPCAConfig
from pdiff_hf.training.gate import PoorReconstructionError, check_reconstruction, measure_reconstruction

BASE = BaseModel.timm("test_resnet", num_classes=4)


def resnet_rows(num_rows=30):
    """Real networks with noise on every weight, and running means that go far along one direction."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4)
    layout = ParameterLayout.from_model(model, buffers=True)
    rows = layout.flatten(model) + 0.01 * torch.randn(num_rows, layout.num_parameters)
    rows[:, logs_of(layout)] = 1.0
    columns, way = column_kinds(layout, BASE), 100 * torch.randn(num_rows, 1)
    for spec in layout.tensors:
        if spec.name.endswith("running_mean"):
            rows[:, spec.offset : spec.offset + spec.numel] = way * torch.linspace(1, 2, spec.numel)
    return layout, rows, columns


def logs_of(layout):
    return torch.cat([torch.arange(s.offset, s.offset + s.numel) for s in layout.tensors if s.transform == "log"])


def in_parameter_units(autoencoder, train, heldout):
    decoded = torch.cat([block for _, _, block in autoencoder.reconstruct_blocks(heldout)], 1)
    return 1 - ((heldout - decoded).square().sum() / (heldout - train.mean(0)).square().sum()).item()


def test_running_means_do_not_carry_weights_that_are_not_reconstructed():
    layout, rows, columns = resnet_rows()
    heldout = torch.arange(len(rows)) % 10 == 5
    train, heldout = rows[~heldout], rows[heldout]
    autoencoder = AutoencoderPCA(layout=layout.to_dict(), normalization="per_parameter", latent_channels=1)
    autoencoder.fit_statistics(train)
    # All that is kept of a network is where it is along that direction.
    means = (columns == KINDS.index("running statistics")).float()
    means[logs_of(layout)] = 0
    autoencoder.components.basis.copy_(means / means.norm())
    assert in_parameter_units(autoencoder, train, heldout) > 0.999
    report = measure_reconstruction(autoencoder, train, heldout, columns=columns)
    assert abs(report["explained_by_kind"]["weights"]) < 0.1 and report["explained_variance"] < 0.1
    assert report["explained_by_kind"]["running statistics"] > 0.9
    named = r"\(weights -?\d\.\d %, biases .* %, norms .* %, running statistics 100"
    with pytest.raises(PoorReconstructionError, match=named):
        check_reconstruction(report, AutoencoderPCAConfig())


def test_weights_do_not_carry_running_statistics_that_are_not_reconstructed():
    report = explained_by_kind(torch.tensor([1.0, 0.0, 0.0, 9.0]), torch.tensor([990.0, 0.0, 1.0, 9.0]))
    assert report["explained_variance"] == pytest.approx(0.99)
    assert report["explained_by_kind"] == pytest.approx({"weights": 1 - 1 / 990, "norms": 1, "running statistics": 0})
    assert poor_kinds(report, 0.95) == ["running statistics"] and poor_kinds(report, -1) == []
    assert poor_kinds({**report, "explained_by_kind": {"weights": 1.0, "biases": float("nan")}}, 0) == ["biases"]


def explained_directly(autoencoder, train, heldout, columns):
    """By the formula, from whole matrices in float64, of the networks without logarithms."""
    scale = torch.cat([train, heldout]).double().std(0)
    decoded = autoencoder.decode(autoencoder.encode(heldout).latents).sample
    residual = ((decoded.double() - heldout) / scale).square().sum(0)
    total = ((heldout.double() - train.double().mean(0)) / scale).square().sum(0)
    shares = {KINDS[i]: 1 - (residual[columns == i].sum() / total[columns == i].sum()).item() for i in (0, 1)}
    return 1 - (residual.sum() / total.sum()).item(), shares


@pytest.mark.parametrize("kind", ["pca", "pdiff"])
def test_shares_are_those_of_the_formula_in_blocks_of_any_size(kind, monkeypatch):
    vectors = make_vectors(30).contiguous()
    train, heldout, before = vectors[:20], vectors[20:], vectors.clone()
    autoencoder = make_autoencoder(kind)
    columns = column_kinds(autoencoder.layout)
    expected, shares = explained_directly(autoencoder, train, heldout, columns)
    for module in (reconstruction, autoencoder_pca):
        monkeypatch.setattr(module, "BLOCK_VALUES", 30 * 7)
    with torch.no_grad():
        found = explained_variances(autoencoder, train, heldout, columns)
    assert found["explained_variance"] == pytest.approx(expected, abs=1e-5)
    assert found["explained_by_kind"] == pytest.approx(shares, abs=1e-5)
    assert found["train_explained_by_kind"].keys() == shares.keys()
    assert torch.equal(vectors, before)


def test_the_unit_of_a_tensor_does_not_matter():
    vectors, found = make_vectors(30), []
    for factor in (1.0, 1e4):
        scaled = vectors.clone()
        scaled[:, :5] *= factor
        autoencoder = AutoencoderPCA(vectors.shape[1], normalization="per_parameter", latent_channels=3)
        autoencoder.fit_statistics(scaled[:20])
        found.append(explained_variances(autoencoder, scaled[:20], scaled[20:])["explained_variance"])
    assert found[0] == pytest.approx(found[1], abs=1e-4) and found[0] < 0.99


def test_where_nothing_varies_there_is_nothing_to_explain():
    vectors = make_vectors(1).repeat(12, 1)
    found = explained_variances(make_autoencoder("pca"), vectors[:8], vectors[8:])
    assert found["explained_variance"] == 1 and found["explained_by_kind"] == {} and poor_kinds(found, 0.95) == []
