"""Traffic between regions: metrics, plan, table, proxies. It knows of no models, and no request passes through it.

- `fleet`: regions, distances, thresholds and policies, as `fleet.yaml` has them; `load`: demand and capacity.
- `metrics`: what dispatchers and edges count, by region.
- `planner`: a pure function (fleet, load) to a routing table.
- `control`: the loop from metrics to a published table; `agent`: takes it to an edge that the loop does not reach.
- `table`: the routing table, its file, and the moves that explain it.
- `data_plane`: where proxies stand, what they put up with, who may use them; `jobs`: what the service takes;
  `retries`: what may be tried again.
- `envoy`: edges, which go by the table; `dispatcher`: a region's line of jobs; `proxies`: both; `kubernetes`: the same
  there.
- `commands`: one module a command of `python -m routing`; `cli` finds them, and those of the laboratory.
- `errors`, `files`, `schema`, `console`: what is wrong and where, in files that people write.
"""
