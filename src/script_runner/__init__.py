"""script-runner turns any script into an HTTP API."""

__version__ = "1.0.0"
