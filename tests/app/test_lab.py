import json

import pytest
import torch

from pdiff_hf import PDiffPipeline
from pdiff_hf.app import lab as module
from pdiff_hf.app.judge import judge_predictions
from pdiff_hf.app.lab import Lab, Request, similarity_to
from pdiff_hf.app.sources import open_source


def test_networks_are_those_of_the_pipeline_with_the_same_seed(lab, drawn, tiny_run):
    pipe = PDiffPipeline.from_pretrained(tiny_run / "pipeline")
    pipe.scheduler = module.make_scheduler("dpmsolver++", pipe.scheduler, 3)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(drawn.vectors, pipe(6, 3, generator=generator, output_type="pt").parameters)


def test_accuracies_are_those_of_the_networks_themselves(lab, drawn):
    inputs, labels = lab.judge.task.arrays("test")
    model = lab.source.pipeline.build_model(drawn.vectors[2])
    said = model(inputs).argmax(1)
    assert drawn.judged.score[2].item() == pytest.approx((said == labels).float().mean().item())
    assert torch.equal(drawn.judged.wrong[2], said != labels)


def test_similarity_is_that_of_mistakes_to_the_nearest_original(lab, drawn):
    wrong, others = drawn.judged.wrong[0], lab.originals().judged.wrong
    ious = [(wrong & other).sum().item() / max(1, (wrong | other).sum().item()) for other in others]
    assert drawn.similarity[0].item() == pytest.approx(max(ious))


def test_an_original_is_not_its_own_neighbour():
    judged = judge_predictions(torch.tensor([[0, 1, 1], [1, 1, 1]]), torch.tensor([[0, 0, 1]]))
    vectors = torch.zeros(2, 1)
    assert similarity_to(vectors, judged, vectors, judged).tolist() == [1, 1]
    assert similarity_to(vectors, judged, vectors, judged, exclude_self=True).tolist() == [0.5, 0.5]
    one = judge_predictions(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]]))
    assert similarity_to(vectors[:1], one, vectors[:1], one, exclude_self=True).isnan().all()


def test_networks_are_judged_by_the_labels_that_they_fit_best_where_there_are_several():
    judged = judge_predictions(torch.tensor([[1, 1, 0], [0, 1, 1]]), torch.tensor([[0, 1, -1], [1, 1, 1]]))
    assert judged.labels.tolist() == [[1, 1, 1], [0, 1, -1]]
    assert judged.score.tolist() == pytest.approx([2 / 3, 1.0]) and judged.wrong.sum(1).tolist() == [1, 0]


def test_the_oracle_is_the_best_original(lab, drawn):
    soup, oracle = drawn.marks
    assert oracle.score == lab.originals().judged.score.max().item()
    mean = lab.source.dataset.vectors().double().mean(0)
    model = lab.source.pipeline.build_model(mean.float())
    inputs, labels = lab.judge.task.arrays("test")
    assert soup.score == pytest.approx((model(inputs).argmax(1) == labels).float().mean().item())


def test_what_was_drawn_is_kept_up_to_a_number_of_bytes(lab, ask, monkeypatch):
    first = lab.draw(ask(seed=1))
    assert lab.draw(ask(seed=1)) is first
    monkeypatch.setattr(module, "MAX_BYTES", 2 * first.vectors.nbytes)
    for seed in range(2, 8):
        lab.draw(ask(seed=seed))
    assert sum(drawn.vectors.nbytes for drawn in lab._drawn.values()) <= module.MAX_BYTES
    monkeypatch.setattr(module, "MAX_BYTES", 2**28)
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    for seed in range(2, 8):
        lab.draw(ask(seed=seed))
    assert len(lab._drawn) == 3
    again = lab.draw(ask(seed=1))
    assert again is not first and torch.equal(again.vectors, first.vectors)


def test_what_the_pipeline_warns_of_is_told(lab, ask):
    assert "take more steps" in lab.draw(ask(seed=30)).notes[0]
    assert lab.draw(ask(seed=30, num_inference_steps=20)).notes == []


def test_progress_is_reported_step_by_step(lab, ask):
    told = []
    lab.draw(ask(seed=20, num_inference_steps=4), lambda share, what: told.append((share, what)))
    assert [what for _, what in told] == [f"step {n} of 4" for n in range(1, 5)] + ["test examples"]
    assert [share for share, _ in told] == sorted(share for share, _ in told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "must be at least 1"),
        ({"num_samples": 501}, "up to 500 networks at once"),
        ({"num_inference_steps": 100_000}, "up to 1000 steps"),
        ({"truncation": 2.0}, "between 0"),
        ({"scheduler": "magic"}, "expected a scheduler"),
        ({"condition": {"classes": ["1"]}}, "trained without conditions"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(lab, ask, options, message):
    with pytest.raises(ValueError, match=message):
        lab.draw(ask(**options))
    assert len(lab.draw(ask()).vectors) == 5


def test_networks_of_a_condition_are_judged_by_its_task(subsets_lab, ask):
    drawn = subsets_lab.draw(ask(condition={"classes": ["3", "8"]}))
    inputs, labels = subsets_lab.judge.task.arrays("test")
    said = subsets_lab.source.pipeline.build_model(drawn.vectors[1])(inputs).argmax(1)
    wanted = ((labels == 3) | (labels == 8)).long()
    assert drawn.judged.score[1].item() == pytest.approx((said == wanted).float().mean().item())
    assert subsets_lab.answers_for(drawn.request) == ["none of 3, 8", "one of 3, 8"]


def test_the_oracle_of_a_condition_are_the_networks_trained_for_it(subsets_lab, ask):
    dataset = subsets_lab.source.dataset
    told = {"classes": dataset.condition_spec.describe(dataset.conditions()[0].tolist())}
    _, oracle = subsets_lab.draw(ask(condition=told)).marks
    assert oracle.name == "oracle: mean of 1 trained for this condition"
    assert oracle.score == pytest.approx(dataset.metrics["test_accuracy"][0].item(), abs=1e-6)
    votes = subsets_lab.vote(ask(condition=told), subsets_lab.judge.inputs[:1])
    assert votes["originals"].size == 1 and votes["soup"].size == 1


def test_originals_of_other_tasks_do_not_vote(subsets_lab, ask):
    trained = {tuple(name.split("+")) for name in subsets_lab.source.dataset.tasks}
    pairs = [(str(a), str(b)) for a in range(10) for b in range(a + 1, 10)]
    told = {"classes": [*next(pair for pair in pairs if pair not in trained)]}
    unseen = subsets_lab.source.dataset.folder / "unseen"
    assert unseen.is_dir()
    votes = subsets_lab.vote(ask(condition=told), subsets_lab.judge.inputs[:1])
    assert set(votes) <= {"generated", "originals", "soup"} and votes["generated"].size == 5
    if "originals" in votes:
        assert votes["originals"].size < len(subsets_lab.source.dataset)


def test_votes_are_those_of_the_networks(lab, ask):
    request, inputs = ask(num_samples=4), lab.judge.inputs[7:8]
    vote = lab.vote(request, inputs)["generated"]
    drawn = lab.draw(request)
    answers = drawn.judged.predictions[:, 7]
    assert vote.counts == torch.bincount(answers, minlength=10).tolist()


def test_a_pipeline_alone_is_judged_on_the_embedded_digits_it_was_evaluated_on(tiny_run, tmp_path, ask):
    import shutil

    alone = shutil.copytree(tiny_run / "pipeline", tmp_path / "alone")
    found = Lab(open_source(str(alone)))
    assert [note[:27] for note in found.source.notes] == ["The originals are not here,"]
    drawn = found.draw(ask())
    assert drawn.judged is not None and drawn.marks == [] and drawn.similarity.isfinite().all()
    (alone / "metrics.json").unlink()
    blind = Lab(open_source(str(alone)))
    assert blind.judge is None and "Nothing says what judges" in blind.source.notes[1]
    drawn = blind.draw(ask())
    assert drawn.judged is None and drawn.similarity.isfinite().all()
    with pytest.raises(ValueError, match="cannot vote"):
        blind.vote(ask(), torch.zeros(1, 1, 8, 8))


def test_a_dataset_of_another_network_is_left_out_beside_and_refused_by_name(tiny_run_copy, subsets_run):
    import shutil

    shutil.rmtree(tiny_run_copy / "dataset")
    shutil.copytree(subsets_run / "dataset", tiny_run_copy / "dataset")
    found = open_source(str(tiny_run_copy))
    assert found.dataset is None and "cannot be used" in found.notes[0]
    with pytest.raises(ValueError, match="belong to different networks"):
        open_source(str(tiny_run_copy), dataset=str(subsets_run / "dataset"))


def test_code_that_a_dataset_names_is_not_run(tiny_run_copy, tmp_path, monkeypatch):
    """Neither the function that judges its networks, nor what builds them."""
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\ndef judge(network):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    stats = tiny_run_copy / "dataset" / "stats.json"
    told = json.loads(stats.read_text())
    told["metadata"]["task"] = {"kind": "function", "function": "evil.py:judge"}
    stats.write_text(json.dumps(told))
    found = Lab(open_source(str(tiny_run_copy)))
    assert found.judge is None and "evil.py" in " ".join(found.source.notes)
    assert len(found.draw(Request(num_samples=2, num_inference_steps=2)).vectors) == 2
    assert not (tmp_path / "ran").exists()
