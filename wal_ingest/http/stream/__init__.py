"""`GET /stream`: points over a WebSocket, each frame acknowledged after it is durable. See API.md for the protocol.

`protocol` is what is said, both ways, as plain functions; `session` is one connection; `streams` is the route that
holds all of them.
"""
