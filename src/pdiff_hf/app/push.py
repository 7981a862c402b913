"""The page as a Space on the Hub."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Unpack

from huggingface_hub import SpaceCardData

from ..files import temporary_folder, write_json
from ..hub.card_text import code, hub_id, template
from ..hub.snapshot import Snapshot, split_hub_id
from ..hub.upload import SPACE_SDK, PushOptions, push_files
from ..version import __version__

# Of the extra's range, the one that the tests have seen.
SDK_VERSION = "6.31.0"


def push_space(
    repo_id: str, pipeline: str | None = None, dataset: str | None = None, **options: Unpack[PushOptions]
) -> str:
    """Push a Space with the page of a pipeline that is on the Hub.

    Args:
        repo_id (`str`): `user/name` of the Space; made when it does not exist.
        pipeline (`str`, *optional*): `user/name[@revision]` of the pipeline; by default of the same name as the Space.
        dataset (`str`, *optional*): Of its originals, which are then shown beside the generated networks.
        options: `private`, `revision`, `token` and `create_pr`, see [`PushOptions`].

    Returns:
        `str`: address of the commit or pull request.

    Raises:
        ValueError: the Hub has no such pipeline or dataset, or refuses; nothing is committed then.
    """
    pipeline = pipeline or repo_id
    for name, index, repo_type in ((pipeline, "model_index.json", "model"), (dataset, "layout.json", "dataset")):
        if name is None:
            continue
        if (found := split_hub_id(name)) is None:
            raise ValueError(f"a Space reads from the Hub: expected user/name, found {name!r}; push it first.")
        Snapshot(found[0], index, repo_type, found[1], token=options.get("token"))
    with temporary_folder() as folder:
        return push_files(write_space(folder, repo_id, pipeline, dataset), repo_id, "space", "app", **options)


def write_space(folder: Path, repo_id: str, pipeline: str, dataset: str | None = None) -> dict[str, Path]:
    """Write the files of a Space, and give them by their names."""
    data = SpaceCardData(
        title=repo_id.partition("/")[2],
        sdk=SPACE_SDK,
        sdk_version=SDK_VERSION,
        python_version="3.11",
        app_file="app.py",
        license="apache-2.0",
        models=[pipeline.partition("@")[0]],
        datasets=[dataset.partition("@")[0]] if dataset and hub_id(dataset.partition("@")[0]) else None,
    )
    text = (
        template("space_card.md").replace("{{ card_data }}", data.to_yaml()).replace("{{ pipeline }}", code(pipeline))
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "requirements.txt").write_text(f"pdiff-hf[app]>={__version__}\n", encoding="utf-8")
    write_json(folder / "settings.json", {"pipeline": pipeline, "dataset": dataset})
    app = (resources.files(__package__) / "space" / "app.py").read_text(encoding="utf-8")
    (folder / "app.py").write_text(app, encoding="utf-8")
    return {path.name: path for path in sorted(folder.iterdir())}
