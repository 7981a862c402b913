"""Cards that say what an artefact is and what it is worth, rendered from `hub_cards/`."""

from .card_text import REPO_ID, update_card, write_card
from .dataset_card import write_dataset_card
from .generated_card import make_generated_card
from .model_card import write_pipeline_card

__all__ = [
    "REPO_ID",
    "make_generated_card",
    "update_card",
    "write_card",
    "write_dataset_card",
    "write_pipeline_card",
]
