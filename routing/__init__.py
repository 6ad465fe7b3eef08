"""Traffic between regions: metrics, plan, table, proxies. It knows nothing of models, and no request passes through it.

- `fleet`: regions, distances, thresholds and policies, as `fleet.yaml` has them; `load`: demand and capacity.
- `metrics`: what dispatchers and edges count, by region.
- `planner`: a pure function (fleet, load) to a routing table.
- `control`: the loop from metrics to a published table; `agent`: takes it to an edge that the loop does not reach.
- `simulate`: a fleet in a computer, event by event, with the control loop in the loop.
- `capacity`: GPUs by region, from traffic of the past; `tune`: policies that meet a goal; `queueing`: their formulas.
- `table`: the routing table, its file, and the moves that explain it.
- `data_plane`: where proxies stand, what they put up with, who may use them; `retries`: what may be tried again.
- `envoy`: edges, which go by the table; `dispatcher`: a region's line of jobs; `proxies`: both; `targets`: the same on
  Kubernetes.
- `local`: a fleet on one machine, with stand-ins for GPU servers, and the experiment.
- `commands`: one module a command of `python -m routing`; `cli` finds them.
- `errors`, `files`, `schema`, `yaml_text`: what is wrong and where, in files that people write; `charts`: what plots
  share.
"""
