from contextlib import nullcontext

import pytest

from pdiff_hf import BaseModel
from pdiff_hf.models.auto import AUTOENCODER
from pdiff_hf.runs.recipe import GenerateConfig
from pdiff_hf.runs.validation import parse_config, parse_section
from pdiff_hf.wording import argument, setting, typed_options

TRUST = ("trusted_imports", "['nets:small']", "nets:small", "base_model.trusted_imports")


@pytest.mark.parametrize(
    ("options", "named", "flag"),
    [
        (None, "trusted_imports=['nets:small']", "buffers=True"),
        ({}, "trusted_imports=['nets:small']", "buffers=True"),
        ({"trusted_imports": "--trust", "buffers": "--buffers"}, "--trust nets:small", "--buffers"),
        ({"overrides": "--set"}, "--set \"base_model.trusted_imports=['nets:small']\"", "buffers=True"),
    ],
)
def test_an_argument_is_named_as_the_reader_can_give_it(options, named, flag):
    if options is None:
        assert (argument(*TRUST), argument("buffers", "True")) == (named, flag)
        return
    with typed_options(options):
        assert (argument(*TRUST), argument("buffers", "True")) == (named, flag)
    assert argument("buffers") == "buffers"


def test_message_of_a_section_names_the_option_where_there_is_one():
    def message():
        with pytest.raises(ValueError) as caught:
            parse_config(GenerateConfig, {"scheduler": "heun"})
        return str(caught.value)

    assert message().startswith("key 'scheduler': expected 'dpmsolver++'")
    with typed_options({"scheduler": "--scheduler"}):
        assert message().startswith("--scheduler: expected 'dpmsolver++'")
    # A flag of a training script that the kind of its section has not.
    with (
        typed_options({"steps": "--max_train_steps", "seed": "--seed"}),
        pytest.raises(ValueError, match=r"^unknown --max_train_steps; the nearest valid key is '--seed'\.$"),
    ):
        parse_section(AUTOENCODER, {"kind": "pca", "steps": 3})


def test_foreign_code_is_trusted_by_what_was_typed():
    with pytest.raises(ValueError, match=r"give trusted_imports=\['mynets:small'\]\.$"):
        BaseModel.imported("mynets:small").build()
    with (
        typed_options({"trusted_imports": "--trust"}),
        pytest.raises(ValueError, match=r"give --trust mynets:small\.$"),
    ):
        BaseModel.imported("mynets:small").build()
    with (
        typed_options({"overrides": "--set"}),
        pytest.raises(ValueError, match=r"give --set \"base_model.trusted_imports=\['mynets:small'\]\"\.$"),
    ):
        BaseModel.imported("mynets:small").build()


# Arguments before anything is imported: the command at hand is named, whichever it is.


def test_commands_name_their_own_options(pdiff, tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    for arguments, expected in (
        (["generate", tmp_path / "pipeline", "--out", tmp_path / "n", "--scheduler", "heun"], "--scheduler: expected"),
        (["collect", "digits-mlp", "--out", tmp_path / "n", "--set", "steps"], "--set 'steps': expected section.key"),
    ):
        code, _, err = pdiff(*arguments)
        assert code == 2 and expected in err
    # Nothing of it is left for Python.
    assert argument("scheduler") == "scheduler"


@pytest.mark.parametrize(
    ("options", "task", "steps"),
    [
        (None, "dataset", "steps=5"),
        # Of `pdiff evaluate`, which names a parameter dataset and no recipe.
        ({"dataset": "--dataset", "seed": "--seed"}, "dataset", "steps=5"),
        ({"overrides": "--set", "dataset": "--dataset"}, "--set task.dataset=…", '--set "autoencoder.steps=5"'),
        ({"steps": "--max_train_steps", "dataset": "--dataset"}, "dataset", "--max_train_steps 5"),
    ],
)
def test_a_key_of_a_recipe_is_named_as_one_only_where_there_is_a_recipe(options, task, steps):
    with nullcontext() if options is None else typed_options(options):
        assert (setting("task.dataset"), setting("autoencoder.steps", "5")) == (task, steps)
