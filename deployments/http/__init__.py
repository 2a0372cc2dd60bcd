"""The OpenAI-compatible API over a service. Knows nothing of Ray."""
