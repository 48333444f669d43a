"""`GET /stream`: points over a WebSocket, each frame acknowledged after it is durable. See API.md for the protocol.

`protocol` is what is said, both ways, as plain functions; `intake` makes of a message what stands in line; `session` is
one connection; `streams` is the route that holds all of them.
"""
