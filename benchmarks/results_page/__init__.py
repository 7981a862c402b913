"""The page of all results: what was run, beside the paper's numbers, and what was not run."""
