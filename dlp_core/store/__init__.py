"""Where bytes lie: one protocol over clouds, a folder and memory, and what moves files in and out of it."""
