"""Traffic between regions: metrics, plan, table, Envoy. Nothing here knows of models, and no request passes through it.

- `fleet`: regions, distances, thresholds and policies, as `fleet.yaml` has them; `load`: demand and capacity.
- `planner`: a pure function (fleet, load) to a routing table.
- `table`: the routing table, its file, and the moves that explain it.
- `commands`: one module a command of `python -m routing`; `cli` finds them.
- `errors`, `files`, `schema`: what is wrong and where, in files that people write.
"""
