"""A fleet on Kubernetes: an overlay for each region, over `deploy/kubernetes/base`.

- `settings`: what `kubernetes.yaml` says, and that it fits the fleet before anything is written.
- `patches`: what of the base differs from region to region, and what a proxy's files look like in a pod.
- `overlays`: the files.
"""
