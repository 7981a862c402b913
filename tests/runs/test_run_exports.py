import pytest

from factories import TINY_RUN, count_exports
from pdiff_hf import exported
from pdiff_hf.disk_cache import texts_kept
from pdiff_hf.runs.evaluate import evaluate_run
from pdiff_hf.runs.folder import Run
from pdiff_hf.runs.recipe import EvaluateConfig, load_recipe
from pdiff_hf.runs.stages import run_recipe


@pytest.mark.usefixtures("no_figures")
def test_run_exports_its_network_once_and_the_next_command_never(tmp_path, monkeypatch):
    sizes = count_exports(monkeypatch)
    # Part of a network, so that collection and fine-tuning train it by what is left of the forward pass.
    recipe = load_recipe(
        "digits-mlp", [*TINY_RUN, "collect.select=[5.*]", "autoencoder.allow_poor_reconstruction=true"]
    )
    with texts_kept():
        run_recipe(recipe, tmp_path / "run")
        assert sizes == [recipe.collect.train_batch_size]
        exported._IN_MEMORY.clear()
        evaluate_run(Run(tmp_path / "run"), EvaluateConfig())
    assert len(sizes) == 1
