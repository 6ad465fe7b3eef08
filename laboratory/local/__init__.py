"""A fleet on one machine, for trying, testing and measuring: real Envoys, a real control loop, emulated distances.

- `launch`, `stop`, `report`: up, down and status. `layout` says where everything is, `programs` what is started,
  `about` is what was.
- `supervisor`: keeps the programs running; `components` is what it reads and writes, `processes` how it starts and ends
  them, `ports` which ones they get.
- `standin`: GPU servers that take time and compute nothing, as a program; `gpu` is one of them,
  `series` its metrics, `service_times` how long they take, `faults` what tests let go wrong, `ledger` the proof that no
  job is computed twice.
- `arrivals`, `client`: requests, and what became of them; `pages`: what proxies say of themselves.
"""
