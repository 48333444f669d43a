"""The front door: a bare ASGI callable for ingest, a Quart-Trio app for all else, both on Hypercorn."""
