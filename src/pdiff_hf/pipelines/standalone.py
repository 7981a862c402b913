"""Export of a pipeline that carries its own code, for where this package is not installed.

Every exported `.py` is one fixed loader with the sources that it needs as text, verbatim.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import resources, util
from pathlib import Path

from ..files import read_json, write_json
from ..models.auto import own_classes
from ..version import __version__

# Lines of a source stand behind `#|`, which none of the patterns by which diffusers looks for imports takes for one.
LOADER = '''\
"""Made by pdiff_hf {version} (Apache-2.0): its own sources, verbatim behind `#|` below, and what imports them."""

import importlib.abc
import importlib.util
import re
import sys
from pathlib import Path

PACKAGE = "pdiff_hf_{digest}"
TEXT = Path(__file__).read_text(encoding="utf-8")
PARTS = re.split(r"^#: (\\S+)\\n", TEXT, flags=re.MULTILINE)[1:]
SOURCES = {{name: re.sub(r"^#\\|", "", text, flags=re.MULTILINE) for name, text in zip(PARTS[::2], PARTS[1::2])}}


class Sources(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def find_spec(self, name, path=None, target=None):
        package, _, module = name.partition(".")
        if package != PACKAGE:
            return None
        if not any(f"{{source}}.".startswith(f"{{module}}." if module else "") for source in SOURCES):
            raise ModuleNotFoundError(f"{{module}} is not in this export: pip install pdiff-hf", name=name)
        return importlib.util.spec_from_loader(name, self, is_package=self.is_package(name))

    def is_package(self, name):
        return name.partition(".")[2] not in SOURCES

    def get_source(self, name):
        return SOURCES.get(name.partition(".")[2], "")


if PACKAGE not in sys.modules:
    sys.meta_path.append(Sources())
{name} = vars(importlib.import_module(f"{{PACKAGE}}.{module}"))["{name}"]

'''

# What the pipeline imports when it is asked to build a small network.
ON_DEMAND = ("networks",)

# The lines of a card's snippet that are others there.
SNIPPET = {
    r"from diffusers import (\w+)\nfrom pdiff_hf import PDiffPipeline\n": (
        r"from diffusers import DiffusionPipeline, \1\n"
    ),
    r'PDiffPipeline\.from_pretrained\("([^"\n]+)"\)': (
        r'DiffusionPipeline.from_pretrained("\1", revision="standalone", trust_remote_code=True)'
    ),
}


def export_standalone(files: Mapping[str, Path], output_dir: str | Path) -> dict[str, Path]:
    """Write what a stand-alone pipeline has beside or instead of the files of a saved one.

    The exported repository loads with `DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)`. Of the files
    of [`pipeline_files`], those that are new or changed are in `output_dir`; all of the repository are returned.

    Raises:
        ValueError: the autoencoder or the denoiser is neither of this package nor of diffusers.
    """
    output_dir = Path(output_dir)
    index = read_json(files["model_index.json"])
    index["_class_name"] = ["pipeline_pdiff", "PDiffPipeline"]
    code = {"pipeline_pdiff.py": loader("pipelines.pipeline_pdiff", "PDiffPipeline", ON_DEMAND)}
    classes = own_classes()
    for component in ("autoencoder", "unet", "condition_encoder"):
        library, name = index.get(component, (None, None))
        if library in ("diffusers", None):
            continue
        if library != "pdiff_hf" or name not in classes:
            raise ValueError(
                f"{files['model_index.json']}: expected the {component} to be one of pdiff_hf or diffusers, found "
                f"{index[component]}."
            )
        path = classes[name].__module__.partition(".")[2]
        module = path.rpartition(".")[2]
        index[component] = [module, name]
        code[f"{component}/{module}.py"] = loader(path, name)
    write_json(output_dir / "model_index.json", index)
    for file, text in code.items():
        (output_dir / file).parent.mkdir(exist_ok=True)
        (output_dir / file).write_text(text, encoding="utf-8")
    made = ["model_index.json", *code]
    if "README.md" in files:
        text = files["README.md"].read_text(encoding="utf-8")
        for pattern, replacement in SNIPPET.items():
            text = re.sub(pattern, replacement, text)
        (output_dir / "README.md").write_text(text, encoding="utf-8")
        made.append("README.md")
    kept = {file: path for file, path in files.items() if file != "pipeline.py"}
    return {**kept, **{file: output_dir / file for file in made}}


def loader(module: str, name: str, on_demand: tuple[str, ...] = ()) -> str:
    """The text of one exported file, which has the class `name` of `pdiff_hf.{module}`.

    Carried are the modules that it imports at its top, and those that it imports `on_demand`.
    """
    sources: dict[str, str] = {}
    for root in (module, *on_demand):
        _collect(root, sources)
    digest = hashlib.sha256("".join(sources.values()).encode()).hexdigest()[:12]
    parts = [LOADER.format(version=__version__, digest=digest, module=module, name=name)]
    for path, text in sources.items():
        parts += [f"#: {path}\n", *(f"#|{line}" for line in text.splitlines(keepends=True))]
    return "".join(parts)


def _collect(module: str, sources: dict[str, str]) -> None:
    """Add the source of a module, and of those of this package that it imports at its top."""
    if module in sources:
        return
    package, _, name = f"pdiff_hf.{module}".rpartition(".")
    sources[module] = (resources.files(package) / f"{name}.py").read_text(encoding="utf-8")
    for found in re.findall(r"^from (\.+[\w.]*) import", sources[module], flags=re.MULTILINE):
        _collect(util.resolve_name(found, package).removeprefix("pdiff_hf."), sources)
