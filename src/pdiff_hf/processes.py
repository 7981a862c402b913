"""The processes of `accelerate launch`."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

# Others wait while the main process does what cannot be shared, such as training the base model.
TIMEOUT = timedelta(days=7)


def process_state() -> PartialState:
    """The processes of `accelerate launch`, or this one alone. Where there is no accelerator, they speak over gloo.

    Not an `Accelerator`, whose first one fixes the precision of all later ones of the program.
    """
    # Without this, Accelerate would take every process of a launch for one alone.
    has_no_accelerator = torch.accelerator.current_accelerator(check_available=True) is None
    return PartialState(cpu=has_no_accelerator or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)
