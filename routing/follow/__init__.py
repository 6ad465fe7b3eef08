"""Keeping a proxy's files up to date where the control loop does not reach them: beside it, in a pod of its own.

- `tables`: what the control loops publish, and which of them to believe.
- `servers`: GPU servers that come and go, by the name that they have in common.
- `follower`: rounds; what it writes, and what it leaves as it is.
- `service`: the follower as a program.
- `drain`: taking a proxy out before it stops.
"""
