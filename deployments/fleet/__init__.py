"""Serve's request router and autoscaling policies over dlp_core/fleet, and pods that end."""
