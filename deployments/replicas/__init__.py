"""The Ray Serve deployments, and what their processes need."""
