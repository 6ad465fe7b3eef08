"""A fleet on one machine, for trying, testing and measuring: real Envoys, a real control loop, emulated distances.

- `standin`: GPU servers that take time and compute nothing, as a program; `gpu` is one of them, `http11` its HTTP,
  `series` its metrics, `faults` what tests let go wrong, `ledger` the proof that no job is computed twice.
- `service_times`: how long they take.
"""
