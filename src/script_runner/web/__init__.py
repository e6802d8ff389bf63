"""The HTTP side: routes, documents and the description of the API."""
