"""One person shares a run; another, who has only the names of the repositories, gets the same networks and numbers."""

import json
import sys

import pytest
from hub_client import DATA, PIPE, TOKEN

from factories import TINY_RUN
from processes import run


def numbers(value):
    """All numbers in nested dictionaries and lists; NaN where there is none."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [float("nan") if value is None else value]


@pytest.mark.slow
def test_what_is_shared_gives_the_same_networks_and_numbers(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def pdiff(person, *arguments):
        home = tmp_path / person
        home.mkdir(exist_ok=True)
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "cache"), "HF_HUB_DISABLE_XET": "1"}
        if person == "first":
            environment["HF_TOKEN"] = TOKEN
        code, out = run(sys.executable, "-m", "pdiff_hf", *arguments, **environment)
        assert code == 0, out
        return out

    first, second = tmp_path / "first" / "run", tmp_path / "second"
    sets = [argument for override in TINY_RUN for argument in ("--set", override)]
    pdiff("first", "run", "digits-mlp", "--out", first, *sets)
    pdiff("first", "push", "dataset", first / "dataset", DATA)
    pdiff("first", "push", "pipeline", first / "pipeline", PIPE)
    pdiff("first", "push", "generated", first / "generated", "user/zoo", "--zoo")

    generated = second / "mine" / "generated"
    pdiff("second", "generate", PIPE, "--out", generated, "--num-samples", 5, "--num-inference-steps", 5)
    for file in generated.glob("*.safetensors"):
        assert file.read_bytes() == (first / "generated" / file.name).read_bytes()
    pdiff("second", "evaluate", second / "mine", "--dataset", DATA, "--pipeline", PIPE)
    expected, found = (
        json.loads((folder / "report" / "metrics.json").read_text()) for folder in (first, second / "mine")
    )
    for name, group in found["groups"].items():
        for key in ("n", "test_accuracy", "selected", "similarity", "novel_and_performant"):
            assert numbers(group[key]) == pytest.approx(numbers(expected["groups"][name][key]), nan_ok=True), (
                name,
                key,
            )
    mean = f"{100 * found['groups']['generated']['test_accuracy']['mean']:.2f}"
    assert mean in hub.files(PIPE)["README.md"].decode()
    assert "basin" in pdiff("second", "inspect", DATA)
