"""The control loop: metrics to a table that changes slowly, for a reason, and never on what nobody has seen.

- `policy`: its numbers; `smoothing`, `steps`, `bursts`: its parts, each a few pure functions.
- `state`, `controller`: the decisions, a pure state machine on any clock; simulations run the same.
- `publishing`: who is told of a table and a delay; `saved`: the last good table; `leader`: one loop at a time.
- `loop`: rounds on this machine's clock; `journal`: what was decided and why; `exported`, `page`, `web`: what
  operators see.
"""
