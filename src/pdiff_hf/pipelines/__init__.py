from diffusers.pipelines import pipeline_loading_utils

from ..models.auto import own_classes
from .pipeline_pdiff import PDiffPipeline, PDiffPipelineOutput

# diffusers loads components of libraries it knows; without this, pipelines would load from folders but not the Hub.
_COMPONENTS = {name: ["save_pretrained", "from_pretrained"] for name in own_classes()}
pipeline_loading_utils.LOADABLE_CLASSES["pdiff_hf"] = _COMPONENTS
pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(_COMPONENTS)

__all__ = ["PDiffPipeline", "PDiffPipelineOutput"]
