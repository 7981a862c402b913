"""The page is served here, and only here is gradio asked for."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

INSTALL = "the page needs gradio: pip install 'pdiff-hf[app]'"
# Requests that may wait while another is computed.
MAX_WAITING = 200
MAX_UPLOAD = "10mb"


def require_gradio() -> None:
    """Import gradio so that it tells nobody about it.

    Raises:
        ValueError: it is not installed.
    """
    # Read when gradio is imported: no statistics, no question for the latest version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{INSTALL} ({error}).") from error


def serve(
    pipeline: str,
    dataset: str | None = None,
    task: Any = None,
    trusted_imports: Sequence[str] = (),
    *,
    host: str | None = None,
    port: int | None = None,
    in_browser: bool = False,
    wait: bool = True,
    say: Callable[[str], None] = print,
) -> Any:
    """Open a pipeline and serve its page.

    Args:
        pipeline, dataset, task, trusted_imports: See [`open_source`].
        host, port (*optional*): Where; by default this machine alone and a free port from 7860 on.
        in_browser (`bool`, *optional*, defaults to `False`): Open it in the browser.
        wait (`bool`, *optional*, defaults to `True`): Serve until interrupted; else return at once.
        say (`Callable`, *optional*): Is told the address.

    Returns:
        The `gradio.Blocks`, which `close()` ends.

    Raises:
        ValueError: gradio is not installed, the pipeline cannot be opened, or the port is taken.
    """
    require_gradio()
    from .lab import Lab
    from .page import Page, make_theme, static
    from .sources import open_source

    lab = Lab(open_source(pipeline, dataset, task, trusted_imports))
    # Meanwhile the page is built and loaded.
    threading.Thread(target=lab.originals, daemon=True).start()
    blocks = Page(lab).build()
    blocks.queue(max_size=MAX_WAITING)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            inbrowser=in_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            theme=make_theme(),
            css=static("page.css"),
        )
    except OSError as error:
        raise ValueError(f"the page cannot be served at port {port}: {error}; give another --port.") from error
    say(address)
    if wait:
        blocks.block_thread()
    return blocks


def serve_space(folder: str | Path) -> None:
    """Serve the page of a Space: `settings.json` names the pipeline, and a dataset if its originals are to be shown.

    The variables `PDIFF_PIPELINE` and `PDIFF_DATASET` of the Space go before it. What cannot be opened is said on the
    page, in the place of the controls.
    """
    settings = json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))
    pipeline = os.environ.get("PDIFF_PIPELINE") or settings["pipeline"]
    dataset = os.environ.get("PDIFF_DATASET") or settings.get("dataset")
    where = {"host": "0.0.0.0", "port": int(os.environ.get("GRADIO_SERVER_PORT", "7860"))}
    try:
        serve(pipeline, dataset, **where)
    except ValueError as error:
        require_gradio()
        import gradio

        from .page import make_theme

        with gradio.Blocks(title="pdiff", analytics_enabled=False) as blocks:
            gradio.Markdown(f"# {pipeline} cannot be shown")
            gradio.Textbox(str(error), label="Why", interactive=False, lines=3)
        options = {"ssr_mode": False, "share": False, "theme": make_theme(), "footer_links": []}
        blocks.launch(server_name=where["host"], server_port=where["port"], **options)
