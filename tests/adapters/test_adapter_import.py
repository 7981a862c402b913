import json
import shutil
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.adapter_cases import (
    BROKEN,
    CONFIG,
    GOOD,
    WEIGHTS,
    load_base,
    logits_of,
    lora,
    make_adapter,
    probe,
    set_config,
    tensors,
    turned,
)
from pdiff_hf import ParameterDataset
from pdiff_hf.adapters.folder import file_name, network_name
from pdiff_hf.data.importing.adapters.importer import import_adapters
from pdiff_hf.forward import forward_logits
from pdiff_hf.peft_model import file_names


def take(sources, out, base, **options) -> tuple[ParameterDataset, dict]:
    summary = import_adapters(sources, out, str(base), progress=False, **options)
    return ParameterDataset(out), summary


@pytest.mark.parametrize("name", GOOD)
def test_adapters_come_out_as_they_went_in(name, bases, tmp_path):
    base_name, make, change = GOOD[name]
    base = bases[base_name]
    source = make_adapter(tmp_path / "adapter", base, make(), 1, change)
    wanted = logits_of(source, base)
    spread = probe(load_base(base), base_name).std()
    # A test that cannot see the adapter says nothing.
    assert (wanted - probe(load_base(base), base_name)).abs().max() > 0.01 * spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset, summary = take(source, tmp_path / "dataset", base)
    vector = dataset.vectors()[:][0]

    # 1. Written as a folder of peft's, with one configuration without patterns
    dataset.base_model.save_adapter(dataset.layout, vector, tmp_path / "out")
    written = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert not written.get("rank_pattern") and not written.get("alpha_pattern")
    assert (logits_of(tmp_path / "out", base) - wanted).abs().max() < 1e-5

    # 2. And built by this package
    model = dataset.base_model.build()
    dataset.layout.load_into(model, vector)
    assert (probe(model, base_name) - wanted).abs().max() < 1e-5
    assert all(file_name(own) == name for own, name in file_names(model).items())
    assert all(
        network_name(name, dataset.base_model.adapter) == own
        for own, name in file_names(model).items()
        if own in dataset.layout.names
    )
    assert summary["effects"][0] > 0.01

    # 3. Where a scaling is wrong by a hundredth, this test fails
    shrunk = vector.clone()
    for spec in dataset.layout.tensors:
        if any(part in spec.name for part in ("lora_B", "lora_embedding_B", "lambda_b", "ia3_l")):
            shrunk[spec.offset : spec.offset + spec.numel] *= 0.99
    dataset.layout.load_into(model, shrunk)
    if name != "zero":
        assert (probe(model, base_name) - wanted).abs().max() > 1e-5


@pytest.mark.parametrize("name", BROKEN)
def test_broken_adapters_are_refused_in_one_line(name, bases, tmp_path, pdiff):
    change, message = BROKEN[name]
    task = None if name in ("prefix", "kohya") else "SEQ_CLS"
    folder = make_adapter(tmp_path / "adapter", bases["bert"], lora(task_type=task), 0, change)
    out = tmp_path / "out"
    code, said, error = pdiff("import", folder, "--peft", "--base", bases["bert"], "--out", out)
    assert code == 2 and message in error and "it was executed" not in said
    assert len([line for line in error.splitlines() if "Loading weights" not in line and line.strip()]) == 1
    assert not out.exists() and [path.name for path in tmp_path.iterdir()] == ["adapter"]
    with pytest.raises(ValueError, match=r".") as error:
        import_adapters(folder, out, str(bases["bert"]), progress=False)
    assert "\n" not in str(error.value) and not out.exists()


def test_another_base_is_refused_by_its_shapes(bases, tmp_path):
    source = make_adapter(tmp_path / "a", bases["bert"], lora())
    with pytest.raises(ValueError, match="trained on another base than --base"):
        import_adapters(source, tmp_path / "out", str(bases["bert-wide"]), progress=False)


def test_scalings_and_ranks_are_one_collection(bases, tmp_path):
    base = bases["bert"]
    configs = [lora(), lora(lora_alpha=16), lora(r=2, lora_alpha=16, use_rslora=True), GOOD["patterns"][1]()]
    for number, config in enumerate(configs):
        make_adapter(tmp_path / "all" / str(number), base, config, number)
    dataset, _ = take(tmp_path / "all", tmp_path / "dataset", base)
    assert (dataset.base_model.adapter["r"], dataset.base_model.adapter["lora_alpha"]) == (4, 4)
    for number, vector in enumerate(dataset.vectors()[:]):
        dataset.base_model.save_adapter(dataset.layout, vector, tmp_path / f"out{number}")
        own = logits_of(tmp_path / "all" / str(number), base)
        assert (logits_of(tmp_path / f"out{number}", base) - own).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"rank 4 and scaling 4, in .* 4 and 1; .* scalings are kept"):
        import_adapters(tmp_path / "all", tmp_path / "kept", str(base), keep_scaling=True, progress=False)


def test_what_all_share_stays(bases, tmp_path):
    for number in range(2):
        make_adapter(tmp_path / "all" / str(number), bases["bert"], lora(lora_alpha=16, use_rslora=True), number)
    dataset, summary = take(tmp_path / "all", tmp_path / "dataset", bases["bert"])
    adapter = dataset.base_model.adapter
    assert (adapter["r"], adapter["lora_alpha"], adapter["use_rslora"]) == (4, 16, True)
    assert adapter["base_model_name_or_path"] == "someone/bert"
    assert summary["base_sha256"] and summary["runs"] == ["0", "1"]


def test_turned_copies_are_equal_rows_and_said_to_be_copies(bases, tmp_path):
    make_adapter(tmp_path / "all" / "a", bases["bert"], lora(), 3)
    shutil.copytree(tmp_path / "all" / "a", tmp_path / "all" / "b")
    tensors(lambda k, v: (k, turned(k, v) if "lora_" in k else v))(tmp_path / "all" / "b")
    with pytest.warns(UserWarning, match="1 of 2 adapters are those of earlier ones"):
        dataset, summary = take(tmp_path / "all", tmp_path / "dataset", bases["bert"])
    first, second = dataset.vectors()[:]
    assert (first - second).abs().max() < 1e-5 and summary["num_copies"] == 1


def test_one_a_for_all_is_kept_once(bases, tmp_path):
    for number in range(3):
        make_adapter(tmp_path / "all" / str(number), bases["bert"], lora(), number)
    first = load_file(tmp_path / "all" / "0" / WEIGHTS)
    for number in (1, 2):
        change = tensors(lambda k, v: (k, first[k] if "lora_A" in k else v))
        change(tmp_path / "all" / str(number))
    dataset, summary = take(tmp_path / "all", tmp_path / "dataset", bases["bert"])
    assert not any("lora_A" in name for name in dataset.layout.names)
    assert {spec.transform for spec in dataset.layout.tensors} == {"identity"}
    assert any("One A for all" in note for note in summary["notes"])
    dataset.base_model.save_adapter(dataset.layout, dataset.vectors()[:][2], tmp_path / "out")
    own = logits_of(tmp_path / "all" / "2", bases["bert"])
    assert (logits_of(tmp_path / "out", bases["bert"]) - own).abs().max() < 1e-5
    # A third one with another A: then A is generated, too.
    make_adapter(tmp_path / "all" / "2b", bases["bert"], lora(), 9)
    dataset, summary = take(tmp_path / "all", tmp_path / "again", bases["bert"])
    assert any("lora_A" in name for name in dataset.layout.names) and len(dataset) == 4


@pytest.mark.parametrize(
    "other, message",
    [
        ("no-head", "is in .* and not in"),
        ("dora", "use_dora is True"),
        ("ia3", "of the kind IA3"),
        ("regex", "is in .* and not in"),
    ],
)
def test_adapters_of_several_kinds_are_refused(other, message, bases, tmp_path):
    make_adapter(tmp_path / "all" / "a", bases["bert"], lora())
    make_adapter(tmp_path / "all" / "b", bases["bert"], GOOD[other][1]())
    with pytest.raises(ValueError, match=message):
        import_adapters(tmp_path / "all", tmp_path / "out", str(bases["bert"]), progress=False)
    assert not (tmp_path / "out").exists()


def test_bases_of_other_names_are_refused_unless_any(bases, tmp_path):
    for number in range(2):
        folder = make_adapter(tmp_path / "all" / str(number), bases["bert"], lora(), number)
    set_config(folder, {"base_model_name_or_path": "someone/else"})
    with pytest.raises(ValueError, match=r"a base called 'someone/else'.*--base-name any"):
        import_adapters(tmp_path / "all", tmp_path / "out", str(bases["bert"]), progress=False)
    _, summary = take(tmp_path / "all", tmp_path / "out", bases["bert"], any_base_name=True)
    assert summary["num_checkpoints"] == 2


def test_expressions_that_never_end_are_refused(bases, tmp_path):
    folder = make_adapter(tmp_path / "a", bases["bert"], lora())
    set_config(folder, {"target_modules": "(.*)*(.*)*(.*)*x(.*.*.*)*y"})
    with pytest.raises(ValueError, match=r"takes more than 2 s|no layer"):
        import_adapters(folder, tmp_path / "out", str(bases["bert"]), progress=False)


def test_tensors_of_the_base_have_to_be_its_own(bases, tmp_path):
    base = load_file(bases["bert"] / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    for place, factor in (("same", 1.0), ("changed", 1.5)):
        folder = make_adapter(tmp_path / place, bases["bert"], lora())
        held = load_file(folder / WEIGHTS) | {f"base_model.model.{name}": base[name] * factor}
        save_file(held, folder / WEIGHTS)
    take(tmp_path / "same", tmp_path / "out", bases["bert"])
    with pytest.raises(ValueError, match=r"\(64, 32\) is of the base, and not what --base has"):
        import_adapters(tmp_path / "changed", tmp_path / "other", str(bases["bert"]), progress=False)


def test_a_head_that_nobody_has_is_refused(bases, tmp_path):
    import transformers

    encoder = transformers.BertModel.from_pretrained(bases["bert"])
    encoder.save_pretrained(tmp_path / "encoder")
    folder = make_adapter(tmp_path / "a", bases["bert"], lora())
    # With its head, the adapter brings what the encoder lacks.
    dataset, _ = take(folder, tmp_path / "out", tmp_path / "encoder")
    assert dataset.base_model.name == "BertForSequenceClassification"
    assert (logits_of(folder, bases["bert"]) - _logits(dataset)).abs().max() < 1e-5
    set_config(folder, {"task_type": "FEATURE_EXTRACTION", "modules_to_save": None})
    tensors(lambda k, v: None if "classifier" in k else (k.replace("model.bert.", "model."), v))(folder)
    take(folder, tmp_path / "features", tmp_path / "encoder")


def _logits(dataset: ParameterDataset) -> torch.Tensor:
    model = dataset.base_model.build()
    dataset.layout.load_into(model, dataset.vectors()[:][0])
    return probe(model, "bert")


def test_lists_trainers_and_conditions(bases, tmp_path):
    base = bases["bert"]
    make_adapter(tmp_path / "runs" / "cats" / "checkpoint-10", base, lora(), 1)
    make_adapter(tmp_path / "runs" / "cats" / "checkpoint-20", base, lora(), 2)
    state = {"global_step": 20, "epoch": 2.0, "log_history": [{"step": 20, "eval_accuracy": 0.75}]}
    (tmp_path / "runs" / "cats" / "checkpoint-20" / "trainer_state.json").write_text(json.dumps(state))
    make_adapter(tmp_path / "runs" / "dogs", base, lora(), 3)
    (tmp_path / "list.txt").write_text("# two places\nruns/cats\n\nruns/dogs\n")
    (tmp_path / "tasks.json").write_text(json.dumps({"cats": "cat", "dogs": "dog"}))
    dataset, summary = take(tmp_path / "list.txt", tmp_path / "out", base, conditions=tmp_path / "tasks.json")
    assert summary["runs"] == ["cats", "dogs"] and summary["metrics"] == ["val_accuracy"]
    rows = dataset.rows.with_format(None)
    assert rows["step"][:] == [10, 20, 0] and rows["val_accuracy"][1] == 0.75
    assert dataset.condition_spec.names == ("cat", "dog") or list(dataset.condition_spec.names) == ["cat", "dog"]
    with pytest.raises(ValueError, match="found no such file or folder"):
        import_adapters(tmp_path / "nothing", tmp_path / "x", str(base), progress=False)
    with pytest.raises(ValueError, match="expected folders of adapters"):
        (tmp_path / "empty").mkdir()
        import_adapters(tmp_path / "empty", tmp_path / "x", str(base), progress=False)
    with pytest.raises(ValueError, match="weights alone do not say them"):
        import_adapters(tmp_path / "runs" / "dogs" / WEIGHTS, tmp_path / "x", str(base), progress=False)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--peft: give --base"),
        (["--base", "BASE", "--select", "all"], "--select is not for adapters"),
        (["--base", "BASE", "--base-name", "x"], "--base-name: expected 'any'"),
        (["--base", "nowhere"], "--base: expected the folder of a model"),
    ],
)
def test_options_that_do_not_fit(options, message, bases, tmp_path, pdiff):
    folder = make_adapter(tmp_path / "a", bases["bert"], lora())
    options = [str(bases["bert"]) if option == "BASE" else option for option in options]
    code, _, error = pdiff("import", folder, "--peft", "--out", tmp_path / "out", *options)
    assert code == 2 and message in error and not (tmp_path / "out").exists()


def test_the_command_says_what_it_took(bases, tmp_path, pdiff):
    for number in range(3):
        make_adapter(tmp_path / "all" / str(number), bases["bert"], lora(), number)
    code, said, error = pdiff("import", tmp_path / "all", "--peft", "--base", bases["bert"], "--out", tmp_path / "out")
    assert code == 0, error
    assert "no adapter says which weights it was trained on" in said and "3 adapters of 1,189 parameters" in said
    assert "On random inputs, the first 3 move the base's outputs by" in said


def test_networks_are_judged_as_peft_computes_them(bases, tmp_path):
    dataset, _ = take(make_adapter(tmp_path / "a", bases["bert"], lora()), tmp_path / "out", bases["bert"])
    model = dataset.base_model.build()
    tokens = (torch.arange(16).reshape(2, 8) * 7 + 3) % 60 + 1
    with torch.no_grad():
        assert torch.allclose(forward_logits(model, tokens), probe(model, "bert"), atol=1e-6)


def test_what_raw_factors_would_have_cost_is_said(bases, tmp_path, pdiff):
    generator = torch.Generator().manual_seed(0)
    folder, labels = tmp_path / "all", {}
    for task in range(2):
        for number in range(4):
            name = f"{task}-{number}"
            # Trainings of a task that differ by little, and by a frame of their own.
            turn = torch.randn(4, 4, generator=generator) * 0.5 + torch.eye(4)
            noise = torch.Generator().manual_seed(number)

            def moved(k, v, turn=turn, noise=noise):
                v = v + 0.002 * torch.randn(v.shape, generator=noise)
                return turn @ v if "lora_A" in k else v @ turn.inverse()

            change = tensors(lambda k, v, moved=moved: (k, moved(k, v) if "lora_" in k else v))
            make_adapter(folder / name, bases["bert"], lora(), task, change)
            labels[name] = f"task{task}"
    dataset, _ = take(folder, tmp_path / "out", bases["bert"], conditions=labels)
    signal = dataset.metadata["import"]["gauge"]
    assert signal["by"] == "task" and signal["canonical"] > 0.6 > signal["raw"] + 0.3
    code, output, error = pdiff("inspect", tmp_path / "out", "--json")
    assert code == 0, error
    found = json.loads(output)["gauge"]
    assert found["num_layers"] == 4 and found["signal"] == signal and 0 <= found["near_equal"] < 0.5
    code, output, _ = pdiff("inspect", tmp_path / "out")
    assert "of raw factors it would be" in " ".join(output.split())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_module_names_of_transformers_4_are_those_of_today(tmp_path):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    config.initializer_range, config.num_labels = 0.3, 5
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit4")
    model = peft.get_peft_model(
        transformers.ViTForImageClassification.from_pretrained(tmp_path / "vit4"),
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder := tmp_path / "adapter")
    older = {"vit.layers.": "vit.encoder.layer.", "attention.q_proj": "attention.attention.query"}
    older["attention.v_proj"] = "attention.attention.value"

    def old_name(name):
        for new, old in older.items():
            name = name.replace(new, old)
        return name

    tensors(lambda k, v: (old_name(k), v))(folder)
    set_config(folder, {"target_modules": ["query", "value"]})
    dataset, summary = take(folder, tmp_path / "out", tmp_path / "vit4")
    assert any("transformers 4" in note for note in summary["notes"])
    dataset.base_model.save_adapter(dataset.layout, dataset.vectors()[:][0], tmp_path / "new")
    images = torch.randn(2, 3, 16, 16)
    base = transformers.ViTForImageClassification.from_pretrained(tmp_path / "vit4")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "new").eval()
    with torch.no_grad():
        assert (again(images).logits - model(images).logits).abs().max() < 1e-5
        assert (model(images).logits - model.get_base_model()(images).logits).abs().max() < 1e-6
    set_config(folder, {"rank_pattern": {"query": 1}})
    with pytest.raises(ValueError, match=r"names of transformers 4, and so has rank_pattern"):
        import_adapters(folder, tmp_path / "other", str(tmp_path / "vit4"), progress=False)
