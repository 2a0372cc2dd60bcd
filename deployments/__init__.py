"""The application: Ray Serve deployments, the HTTP API and the command line over dlp_core."""
