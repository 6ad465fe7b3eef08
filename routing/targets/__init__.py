"""Targets of `render` besides the proxies' files: `kubernetes`, and `stale`, which removes what is written no more."""
