"""Where bytes lie: one protocol over S3, a folder and memory, and what moves files in and out of it."""
