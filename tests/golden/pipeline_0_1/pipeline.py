from pdiff_hf import PDiffPipeline  # noqa: F401
