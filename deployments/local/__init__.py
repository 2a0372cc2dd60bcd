"""The application, and the demo, on one machine."""
