"""Export of a pipeline that carries its own code, for where this package is not installed; made from the sources."""

from __future__ import annotations

import ast
import re
from importlib import resources, util
from pathlib import Path

from ..files import read_json, write_json
from ..version import __version__

# Saving and the Hub are diffusers' own business there, and these need the rest of this package.
DROPPED_METHODS = {"PDiffPipeline": ("save_pretrained", "from_pretrained", "push_to_hub")}

# Libraries that only some base models need.
OPTIONAL = ("timm", "transformers")

# What the one file knows under other names; each must be found exactly once.
REPLACEMENTS = {
    "pdiff_hf.pipelines.pipeline_pdiff": {
        "autoencoder: AutoencoderPDiff | AutoencoderPCA | AutoencoderIdentity": "autoencoder: ModelMixin",
        "from diffusers import DiffusionPipeline,": "from diffusers import DiffusionPipeline, ModelMixin,",
    },
    "pdiff_hf.base_model": {
        "return vars(importlib.import_module(module))[factory]": (
            "own = module == OWN_FACTORIES\n"
            "            return (_FACTORIES if own else vars(importlib.import_module(module)))[factory]"
        ),
    },
}

# The lines of a card's snippet that are others there.
SNIPPET = {
    r"from diffusers import (\w+)\nfrom pdiff_hf import PDiffPipeline\n": (
        r"from diffusers import DiffusionPipeline, \1\n"
    ),
    r'PDiffPipeline\.from_pretrained\("([^"\n]+)"\)': (
        r'DiffusionPipeline.from_pretrained("\1", revision="standalone", trust_remote_code=True)'
    ),
}

FACTORIES = "pdiff_hf.tasks.networks"
# Used by the dropped methods and in annotations only.
SKIPPED = ("pdiff_hf.models", "pdiff_hf.hub.cards", "pdiff_hf.hub.download", "pdiff_hf.hub.push")


def export_standalone(folder: str | Path, output_dir: str | Path) -> dict[str, Path]:
    """Write what a stand-alone pipeline has beside or instead of the files of a saved one.

    The exported repository loads with `DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)`.

    Args:
        folder (`str` or `Path`): A saved pipeline.
        output_dir (`str` or `Path`): Receives the files that are new or changed.

    Returns:
        `dict[str, Path]`: all files of the repository by their names.

    Raises:
        ValueError: the folder is no complete pipeline.
    """
    from .push import pipeline_files

    folder, output_dir = Path(folder), Path(output_dir)
    files = pipeline_files(folder)
    index = read_json(folder / "model_index.json")
    library, name = index["autoencoder"]
    module = {
        "AutoencoderIdentity": "autoencoder_identity",
        "AutoencoderPCA": "autoencoder_pca",
        "AutoencoderPDiff": "autoencoder_pdiff",
    }.get(name)
    if library != "pdiff_hf" or module is None:
        raise ValueError(f"{folder}: expected an autoencoder of pdiff_hf, found {index['autoencoder']}.")
    index["_class_name"] = ["pipeline_pdiff", "PDiffPipeline"]
    index["autoencoder"] = [module, name]
    write_json(output_dir / "model_index.json", index)
    code = {
        "pipeline_pdiff.py": inline_modules("pdiff_hf.pipelines.pipeline_pdiff", FACTORIES),
        f"autoencoder/{module}.py": inline_modules(f"pdiff_hf.models.{module}"),
    }
    for path, text in code.items():
        (output_dir / path).parent.mkdir(exist_ok=True)
        (output_dir / path).write_text(text, encoding="utf-8")
    made = ["model_index.json", *code]
    if "README.md" in files:
        text = files["README.md"].read_text(encoding="utf-8")
        for pattern, replacement in SNIPPET.items():
            text = re.sub(pattern, replacement, text)
        (output_dir / "README.md").write_text(text, encoding="utf-8")
        made.append("README.md")
    files.pop("pipeline.py", None)
    return {**files, **{path: output_dir / path for path in made}}


def inline_modules(root: str, factories: str | None = None) -> str:
    """Source of one file with everything that a module of this package imports from this package.

    Args:
        root (`str`): Full name of the module.
        factories (`str`, *optional*): A module whose functions base models are built by; they are in `_FACTORIES`.
    """
    parts: dict[str, str] = {}
    imports: dict[str, set[str]] = {}
    for module in (factories, root) if factories else (root,):
        _inline(module, parts, imports)
    body = "\n\n".join(parts.values())
    names = [node.name for node in ast.parse(body).body if isinstance(node, _DEFINITIONS)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RuntimeError(f"{root}: two of the modules that it needs define {sorted(twice)}; rename one of them.")
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    required, optional = [], []
    for source, names in sorted(imports.items()):
        wanted = sorted(name for name in names if name.split()[-1] in used)
        line = f"from {source} import {', '.join(wanted)}" if source else ""
        lines = [line] if line and wanted else [f"import {name}" for name in wanted]
        (optional if source.partition(".")[0] in OPTIONAL else required).extend(lines)
    for line in [line for line in required if line.split()[1] in OPTIONAL]:
        required.remove(line)
        optional.append(line)
    lines = [
        f"# Made by pdiff_hf {__version__} from its own sources (Apache-2.0).",
        "from __future__ import annotations\n",
        *required,
        *(f"\ntry:\n    {line}\nexcept ImportError:  # only some base models need it\n    pass" for line in optional),
        "\n",
        body,
    ]
    if factories:
        functions = [node.name for node in ast.parse(parts[factories]).body if isinstance(node, ast.FunctionDef)]
        lines.append("\n_FACTORIES = {" + ", ".join(f'"{name}": {name}' for name in functions) + "}\n")
    return "\n".join(lines)


_DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def _inline(module: str, parts: dict[str, str], imports: dict[str, set[str]]) -> None:
    """Add a module to `parts` behind those that it imports, and the names that it imports elsewhere to `imports`."""
    package, _, name = module.rpartition(".")
    text = (resources.files(package) / f"{name}.py").read_text(encoding="utf-8")
    for old, new in REPLACEMENTS.get(module, {}).items():
        if text.count(old) != 1:
            raise RuntimeError(f"{module}: expected {old!r} once; the stand-alone export has to be adapted.")
        text = text.replace(old, new)
    lines, tree = text.splitlines(), ast.parse(text)
    removed = [tree.body[0]] if ast.get_docstring(tree) else []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            source = util.resolve_name("." * node.level + (node.module or ""), package)
            if source not in SKIPPED and source not in parts:
                _inline(source, parts, imports)
        elif isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            source = node.module if isinstance(node, ast.ImportFrom) else ""
            imports.setdefault(source, set()).update(map(ast.unparse, node.names))
        elif isinstance(node, ast.ClassDef):
            dropped = DROPPED_METHODS.get(node.name, ())
            removed += [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name in dropped]
        if isinstance(node, ast.Import | ast.ImportFrom):
            removed.append(node)
    for node in removed:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        lines[first - 1 : node.end_lineno] = [""] * (node.end_lineno - first + 1)
    parts[module] = re.sub(r"\n{3,}", "\n\n\n", "\n".join(lines)).rstrip() + "\n"
