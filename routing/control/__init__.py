"""The control loop: metrics to a table that changes slowly, for a reason, and never on what nobody has seen.

- `controller`, `state`: the decisions, a pure state machine on any clock; simulations run the same.
- `loop`: rounds on this machine's clock; `service`: the program.
- `publishing`: who is told of a table and a delay, by files, and the last good table; `rows`: what agents ask for.
- `switches`: what operators have frozen or drained; `journal`: what was decided and why.
- `status`, `web`: what operators, Prometheus and agents see.
"""
