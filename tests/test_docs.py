"""README and docs are true: their examples run, in order, as they are written or with less of everything."""

import pytest

from documents import DOCUMENTS, LANGUAGES, Session, read_blocks

FAST = [
    "README.md",
    "docs/quickstart.md",
    "docs/conditions.md",
    "docs/datasets.md",
    "docs/evaluation.md",
    "docs/judging.md",
]
SLOW = [
    "docs/adapters.md",
    "docs/ablate.md",
    "docs/analysis.md",
    "docs/conditional.md",
    "docs/cycles.md",
    "docs/functional.md",
    "docs/merges.md",
    "docs/recipes.md",
    "docs/runs.md",
    "docs/unseen_tasks.md",
    "docs/where_diffusion_helps.md",
    "docs/zoos.md",
    "training/README.md",
]
ON_THE_HUB = ["docs/hub.md", "docs/import.md"]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("no_figures")
def test_examples_run_in_order(name, pdiff, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code, out, err = pdiff(*arguments)
        return code, out + err

    session = Session(call, tmp_path, tiny_run)
    for block in read_blocks(name):
        session.run(block)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_example_is_run_or_says_why_not(name):
    runnable = []
    for block in read_blocks(name):
        if block.language in LANGUAGES:
            runnable += [block] if "skip" not in block.marks else []
        else:
            # What is shown is no command that would not be run.
            assert not any(line.startswith(("pdiff ", "python ", "import ")) for line in block.text.splitlines())
    assert (name in [*FAST, *SLOW, *ON_THE_HUB]) == bool(runnable)
