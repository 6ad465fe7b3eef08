"""Envoy as the data plane: what its configuration is, how it is written, checked and changed while Envoy runs.

- `edge`, `ingress`: the two tiers; `bootstrap`, `http`, `clusters` hold what they share.
- `delay`, `keys`, `tls`, `metrics`: marginal delay, API keys, certificates, counters for others.
- `folders`: the files of a fleet; `live`: those that are replaced while Envoy runs.
- `validation`: Envoy's own check; `binary`: which Envoy, and how it is started.
- `counters`: names of the counters that others read.
- `messages`: shapes that occur again and again.
"""
