"""Puts everything together: settings to adapters to service, worker and server. Only the files in here know all.

``serving`` and ``working`` stand on ``checking``, ``watching`` and ``parts``, and never on each other.

The server's half (uvicorn, Starlette) and the worker's are imported where they are put together, so that neither
process carries the other: 15 MB and 0.2 s each.
"""
