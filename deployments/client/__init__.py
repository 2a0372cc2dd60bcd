"""A running server, seen from outside: what `dlp chat` and `dlp top` are made of. Knows nothing of Ray."""
