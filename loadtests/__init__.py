"""Load tests with Locust: scenarios in terms of a fleet, open-loop arrivals at its edges, and verdicts.

- `scenario`, `roles`: what a file says; `demand`: arrivals per second that follow from it for a fleet.
- `deployment`: edges, and what is known of the fleet behind them; `form`: what is sent.
- `locustfile`: what Locust runs; `options`: its arguments; `loadtest`, `master`, `worker`: one run; `pages`: its web
  pages; `sender`: sends each request at its time; `watch`: looks at the control loop meanwhile; `faults`: what a
  scenario breaks, and mends.
- `histogram`, `tally`: what became of the requests, in a form that workers can add up.
- `findings`, `objectives`, `plan_objectives`, `objective_kinds`, `generator`, `verdict`: passed, failed or void;
  `result`: all of it as JSON; `report`, `charts`: as a page.
- `drill`, `plant`, `cli`: whole fleets on this machine, good ones and broken ones (`python -m loadtests`).

It speaks HTTP with the deployment, and reads files of `routing`, which knows nothing of it.
"""
