"""Attention over a paged cache: each request reads its own pages where they lie, and nobody else's."""
