"""The agent beside an edge that the control loop's files do not reach: it asks for the edge's row, and writes it.

- `loops`: asking the control loops, and choosing one to go by.
- `agent`: what it writes, what it reports, and what it leaves as it is.
- `service`: the agent as a program.
"""
