"""What mkdocs makes of the repository: pages outside of `docs/`, the reference of commands, recipes and Python names.

Links are written as GitHub follows them, from file to file; the site has the files of `docs/` at its root and others
under their path in the repository, so a link is the same file in both.
"""

import posixpath
import re
import sys
from pathlib import Path

from griffe import Extension
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "training/README.md")
OUTSIDE += ("benchmarks/RESULTS.md", "benchmarks/RESULTS_GPU.md")
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)

# Public names, by page: what a reader of `pdiff_hf` imports.
API = {
    "pipelines": ["pipelines.pipeline_pdiff.PDiffPipeline", "pipelines.pipeline_pdiff.PDiffPipelineOutput"],
    "networks": ["layout.ParameterLayout", "base_model.BaseModel", "pipelines.network_folder.load_generated"],
    "data": [
        "data.dataset.ParameterDataset",
        "data.dataset.load_parameter_dataset",
        "data.dataset.load_base_model",
        "data.folder.read_layout",
        "data.record.ParameterRecorder",
        "data.record.ParameterRecorderCallback",
        "data.writer.save_parameter_dataset",
        "data.importing.importer.import_checkpoints",
    ],
    "conditions": ["conditions.ConditionSpec", "text_encoder.TextEncoder"],
}
NAMES = {name.rpartition(".")[2]: f"pdiff_hf.{name}" for names in API.values() for name in names}


def in_site(path: str) -> str:
    """Where the file of a path in the repository is in the site."""
    return path.removeprefix("docs/")


def rewritten(text: str, source: str) -> str:
    """Links of the file `source` of the repository, as the site has them.

    Raises:
        PluginError: If a link leads to no file of the repository, or to one that the site does not show.
    """
    here = posixpath.dirname(source)

    def replace(match: re.Match) -> str:
        start, target, anchor, end = match[1], match[2], match[3] or "", match[4]
        if "://" in target or target.startswith(("mailto:", "data:")):
            return match[0]
        path = posixpath.normpath(posixpath.join(here, target))
        if path.startswith("docs/") or path in OUTSIDE:
            own = posixpath.dirname(in_site(source)) or "."
            return f"{start}{posixpath.relpath(in_site(path), own)}{anchor}{end}"
        if not (ROOT / path).exists():
            raise PluginError(f"{source}: the link {target} leads to no file.")
        raise PluginError(f"{source}: the site does not show {path}; name it as `{path}` or add it to OUTSIDE.")

    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in FENCE.split(text))


def on_files(files, config):
    """Add the pages that are not written by hand in `docs/`."""
    for name in OUTSIDE:
        if (ROOT / name).exists():
            text = (ROOT / name).read_text(encoding="utf-8")
            path = in_site(name)
            # mkdocs takes README.md for the index of its folder.
            files.append(File.generated(config, path, content=rewritten(text, name)))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "recipe_list.md", content=recipe_list()))
    for page, names in API.items():
        blocks = "\n\n".join(f"::: pdiff_hf.{name}" for name in names)
        files.append(File.generated(config, f"api/{page}.md", content=f"# {page.capitalize()}\n\n{blocks}\n"))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of `docs/` lead to pages of the site."""
    if page.file.generated_by:
        return markdown
    return rewritten(markdown, f"docs/{page.file.src_uri}")


def commands() -> str:
    """The page of commands, from typer."""
    sys.path.insert(0, str(ROOT / "src"))
    import typer

    from pdiff_hf import cli

    lines = ["# Commands", ""]

    def add(command, name):
        lines.extend([f"## `{name}`", "", _plain(command.help), ""])
        children = getattr(command, "commands", None)
        if children:
            for child, inner in children.items():
                add(inner, f"{name} {child}")
            return
        shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
        if shown:
            lines.extend(["| option | | default |", "|---|---|---|"])
        for param in shown:
            option = "`, `".join(param.opts) if param.param_type_name == "option" else param.name.upper()
            default = param.default() if callable(param.default) else param.default
            default = "" if default in (None, False, (), []) or param.required else f"`{default}`"
            default = "required" if param.required else default
            lines.append(
                f"| `{option}` | {_plain(getattr(param, 'help', '')).replace('|', chr(92) + '|')} | {default} |"
            )
        lines.append("")

    root = typer.main.get_command(cli.app)
    for name, command in root.commands.items():
        add(command, f"pdiff {name}")
    return "\n".join(lines)


def _plain(text: str | None) -> str:
    """Help as one paragraph of Markdown; what looks like a placeholder is no tag, and brackets are no links."""
    text = " ".join((text or "").replace("\b", "").split())
    return text.replace("<", "&lt;").replace("[", "&#91;")


def recipe_list() -> str:
    """The parts of recipes and the finished ones, from the files that are them."""
    folder = ROOT / "src" / "pdiff_hf" / "recipes"
    lines = ["# All recipes", "", "Any `<network>-<selection>-<data>` is a [recipe](recipes.md).", ""]
    for part in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
        rows = sorted(part.glob("*.yaml"))
        if not rows:
            continue
        title = "Finished" if part == folder else part.relative_to(folder).as_posix().replace("_", " ").capitalize()
        lines += [f"## {title}", "", "| name | what it is |", "|---|---|"]
        for path in rows:
            text = path.read_text(encoding="utf-8")
            said = []
            for line in text.splitlines():
                if not line.startswith("#"):
                    break
                said.append(line.lstrip("# "))
            lines.append(f"| `{path.stem}` | {_plain(' '.join(said)).replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join(lines)


class HuggingFaceDocstrings(Extension):
    """Docstrings as diffusers has them, as griffe reads them: types without marks, references with targets."""

    def on_instance(self, *, obj, **kwargs):
        """Rewrite one docstring before it is parsed."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


ARGUMENT = re.compile(r"^(\s+\*{0,2}\w+) \((.*)\):(?=\s|$)", re.M)
TYPE = re.compile(r"`([^`]*)`")


def readable(text: str) -> str:
    """A docstring whose arguments have plain types, and whose names in brackets lead somewhere.

    `name (`int`, *optional*, defaults to `3`):` becomes `name (int):`; the signature has the default.
    """

    def plain(match: re.Match) -> str:
        words = match[2].partition(", *optional*")[0]
        words = words.replace("[`", "").replace("`]", "").replace("`", "")
        return f"{match[1]} ({words}):"

    text = ARGUMENT.sub(plain, text)

    def refer(match: re.Match) -> str:
        name = match[1]
        known = NAMES.get(name.partition(".")[0])
        if known and "." not in name:
            return f"[`{name}`][{known}]"
        return f"`{name}`"

    return re.sub(r"\[`([^`]+)`\](?!\()", refer, text)
