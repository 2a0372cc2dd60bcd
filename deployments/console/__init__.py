"""The web console of a running server. It speaks to the server's HTTP API alone and knows nothing of Ray."""
