"""The routing table for data planes that are not ours, as Kubernetes resources.

- `istio`: DestinationRule (shares by locality) and VirtualService (retries).
- `gateway_api`: an HTTPRoute for each source region, with Envoy Gateway's BackendTrafficPolicy (retries, delay).
- `weights`: shares as whole numbers.
- `manifests`: what both write.

Behind both stand the dispatchers of this project: they know which GPU is free, and neither target does.
"""
