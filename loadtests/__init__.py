"""Load tests with Locust: scenarios in terms of a fleet, open-loop arrivals at its edges, and verdicts.

- `scenario`, `roles`: what a file says; `demand`: arrivals per second that follow from it for a fleet; `arrivals`: when
  each request is sent.
- `deployment`: edges, and what is known of the fleet behind them; `form`: what is sent.
- `locustfile`: what Locust runs; `options`: its arguments; `test`: one run of it, in master and workers; `sender`: sends
  each request at its time; `watch`: looks at the control loop meanwhile; `faults`: what a scenario breaks, and mends.
- `histogram`, `tally`: what became of the requests, in a form that workers can add up.
- `objectives`, `objective_kinds`, `generator`, `verdict`: passed, failed or void; `report`: a page about it.
- `drill`, `plant`, `cli`: whole fleets on this machine, good ones and broken ones (`python -m loadtests`).

It speaks HTTP with the deployment, and reads files of `routing`, which knows nothing of it.
"""
