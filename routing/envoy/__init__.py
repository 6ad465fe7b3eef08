"""Envoy as the data plane: what its configuration is, how it is written, checked and changed while Envoy runs.

- `edge`: what an edge does with a request, by the templates `edge.yaml.j2` and `routes.yaml.j2`, and its endpoints.
- `files`: the files of an edge, and those of them that are replaced while Envoy runs.
- `binary`: which Envoy, how it is started, and its own check of a configuration.
"""
