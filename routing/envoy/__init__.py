"""Envoy as the data plane: what its configuration is, how it is written, checked and changed while Envoy runs.

- `edge`: what an edge does with a request; `bootstrap`, `http`, `clusters`: its parts.
- `delay`, `keys`, `rate_limit`, `tls`, `metrics`: marginal delay, API keys and their rates, certificates, counters.
- `folders`: the files of an edge; `live`: those that are replaced while Envoy runs.
- `validation`: Envoy's own check; `binary`: which Envoy, and how it is started.
- `messages`: shapes that occur again and again.
"""
