"""`python -m pdiff_hf` is the `pdiff` command, also for `accelerate launch -m pdiff_hf`."""

from .cli import main

main()
