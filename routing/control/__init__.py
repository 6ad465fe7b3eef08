"""The control loop: metrics to a table that changes slowly, for a reason, and never on what nobody has seen.

- `controller`, `state`: the decisions, a pure state machine on any clock; simulations run the same. `smoothing` and
  `bursts` are its parts, each a few pure functions.
- `loop`: rounds on this machine's clock; `service`: the program; `folder`: one loop at a time, and the last good table.
- `publishing`: who is told of a table and a delay, by files; `rows`: what agents beside edges ask for.
- `switches`: what operators have frozen or drained; `journal`: what was decided and why.
- `status`, `exported`, `page`, `web`: what operators, Prometheus and agents see.
"""
