"""What travels between a backbone replica and an ingress replica. No torch: both sides import this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dlp_core.generation.messages import Piece


class Part(NamedTuple):
    """Consecutive pieces of one answer. A tuple, which pickles fast: every step sends one for each answer."""

    replica: str
    """Id of the backbone replica that computes the answer."""
    request_id: str
    position: int
    """Pieces of the answer before these."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Listening:
    """The call by which an ingress replica listens to one backbone replica. The request router
    (deployments/fleet/affinity.py) sends it to `replica`."""

    replica: str
    ingress: str
