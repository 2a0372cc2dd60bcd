"""The `dlp` command, one file a noun."""
