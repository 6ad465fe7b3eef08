"""The dispatcher of a region: HAProxy, which keeps one line of jobs for all GPU servers of the region.

- `config`: what its configuration says; `haproxy.cfg.j2` and `dispatcher.lua` are its text.
- `files`: its folder, and HAProxy's own check of it.
- `runtime`: what changes while it runs: servers that come, go or drain, and taking it out before it stops.
- `program`: HAProxy as a service that reloads when its files change.
- `binary`: which HAProxy.
"""
