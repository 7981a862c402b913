"""Ablations: one recipe, varied along axes, every point an ordinary run."""
