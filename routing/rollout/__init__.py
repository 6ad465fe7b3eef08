"""Rolling out a new version of the model: a candidate gets more of the servers as it proves itself.

- `settings`: steps, pauses and limits, as `rollout.yaml` has them.
- `confidence`: intervals that hold at any time, however often one looks.
- `counters`: what became of the jobs of each version, from the dispatchers' pages or a Prometheus.
- `judge`: stable against candidate: pass, fail, or cannot tell.
- `judging`: the judge as a program, and as a page.
- `probe`: the same request to both versions, whose clips are compared.
- `shadow`: copies of users' requests, animated by both versions while GPUs are idle.
- `runner`: a whole rollout, over servers that somebody else moves.
"""
