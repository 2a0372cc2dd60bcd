"""Which replica runs a request, and how many replicas there should be: pure functions, without Ray."""
