import ast
import re
import subprocess
import sys
from importlib import resources
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import yaml

import pdiff_hf

ROOT = Path(__file__).parents[1]

# Import name → name of the distribution, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


# Of extras.
OPTIONAL = {"gradio", "peft"}
# Imported by nobody before it is known that they can be.
OPTIONAL_ITSELF = {"app/page.py"}


def _imported(nodes):
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]


def test_data_files_are_in_the_package():
    package = resources.files("pdiff_hf")
    assert (package / "hub_cards" / "model_card.md").read_text(encoding="utf-8").startswith("---\n{{ card_data }}")
    assert (package / "recipes" / "digits-mlp.yaml").is_file()
    assert {path.name for path in (package / "app" / "static").iterdir()} >= {"page.css", "plot.js", "canvas.js"}
    assert (package / "app" / "space" / "app.py").is_file()


def test_everything_imported_is_a_declared_dependency():
    declared = {
        re.match(r"[\w-]+", line).group().replace("-", "_") for line in requires("pdiff-hf") if ";" not in line
    }
    imported = set()
    for file in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        # What is optional is imported by whoever needs it, inside of functions.
        if file.relative_to(ROOT / "src" / "pdiff_hf").as_posix() not in OPTIONAL_ITSELF:
            assert not OPTIONAL & {name.partition(".")[0] for name in _imported(tree.body)}, file
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
    # Itself: by the file of a Space, which is no module of the package there.
    imported -= {*sys.stdlib_module_names, *OPTIONAL, "pdiff_hf"}
    assert {DISTRIBUTIONS.get(name, name).replace("-", "_") for name in imported} <= declared


def test_public_names_can_be_imported():
    for name in pdiff_hf.__all__:
        assert getattr(pdiff_hf, name) is not None


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert pdiff_hf.__version__ == version("pdiff-hf") == citation["version"]
    assert f"## {pdiff_hf.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_make_without_a_target_explains_the_targets():
    output = subprocess.run(["make", "-C", ROOT], check=True, capture_output=True, text=True).stdout
    targets = {line.split()[0] for line in output.splitlines() if line and not line.startswith("make")}
    assert targets >= {"help", "demo", "test", "test-slow", "style", "quality", "bench"}


@pytest.mark.slow
def test_wheel_works_without_the_repository(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("pdiff_hf-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
        "import pdiff_hf; from importlib import resources; "
        "from pdiff_hf.runs.recipe import load_recipe; from pdiff_hf.runs.recipe_parts import named_recipes; "
        "print(pdiff_hf.__file__); [load_recipe(name) for name in named_recipes()]; "
        "load_recipe('vit_tiny-last_norms-cifar10', preset='paper', profile='cpu-smoke'); "
        "print((resources.files('pdiff_hf') / 'hub_cards' / 'model_card.md').is_file(), len(named_recipes()))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert output.stdout.splitlines() == [str(tmp_path / "site" / "pdiff_hf" / "__init__.py"), "True 4"]
