"""The agent beside an edge that the control loop's files do not reach: it asks for the edge's row, and writes it.

- `agent`: asking the control loops, choosing one to go by, what is written, reported, and left as it is.
- `service`: the agent as a program.
"""
