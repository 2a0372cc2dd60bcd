"""Text to tokens and back, conversations with their tools, and where sentences start."""
