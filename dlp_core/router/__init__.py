"""Text to probabilities over a bank's adapters, with a mass for "none of these".

Routing and Router need numpy, training needs torch: `Routing` can be sent between processes, and `Router` can
serve, where torch is not installed or not wanted.
"""

from dlp_core.router.router import Router, restricted
from dlp_core.router.routing import Routing

__all__ = ["Router", "Routing", "restricted"]
