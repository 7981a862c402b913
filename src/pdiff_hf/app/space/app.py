"""The page of a pipeline as a Space; settings.json names the pipeline."""

from pathlib import Path

from pdiff_hf.app.serve import serve_space

serve_space(Path(__file__).parent)
