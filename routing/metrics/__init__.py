"""Metrics: what the control loop knows of a fleet, read from its dispatchers and edges, region by region.

- `settings`: the section `metrics` of `fleet.yaml`.
- `pages`, `prometheus`: the two sources, the proxies' own pages or a Prometheus, and rounds of either.
- `proxies`: what the page of one dispatcher, or of one edge, says; `regions`: all of it by region, with costs.
- `observation`: what sources give, and the result, with what was missing, late or absurd.
"""
