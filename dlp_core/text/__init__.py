"""Text to tokens and back, conversations, and where sentences start."""
