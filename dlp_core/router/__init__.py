"""Turns text into probabilities over a bank's adapters and "none of these".

Router needs numpy and Routing not even that, so both work where torch is not installed or should not be loaded. Only
training needs torch.
"""

from dlp_core.router.router import Router, restricted
from dlp_core.router.routing import Passage, Routing

__all__ = ["Passage", "Router", "Routing", "restricted"]
