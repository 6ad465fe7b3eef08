"""A fleet on Kubernetes: an overlay for each region, over `deploy/kubernetes/base`.

- `settings`: what `kubernetes.yaml` says.
- `checks`: that it fits the fleet, and that all certificates and keys are there, before anything is written.
- `place`: what a proxy's files look like in a pod.
- `patches`: what of the base differs from region to region.
- `overlays`: the files.
"""
