"""The agent: one host's figures, measured every few seconds, spooled durably, delivered to a node.

    probes → collect → spool → delivery → (stream | http) → the node

What is measured is one entry in the spool before anybody tries to send it; the spool is a WAL like the node's own, and
what is delivered is what lies in it.
"""
