"""Metrics: what the control loop knows of a fleet, taken from every machine and aggregated by region.

- `settings`: the section `metrics` of `fleet.yaml`; `targets`: which machines there are, and where their pages are.
- `direct`, `prometheus`: the two sources, machines themselves or a Prometheus that scrapes them; `exposition` reads
  their text. `scrape_config` is for that Prometheus.
- `servers`, `edges`: what the pages of one GPU server, and of one edge, say; `growth`: counters to rates.
- `cost`: the load that one request per second costs; `regions`: all of it by region; `collector`: a round.
- `observation`: the result; `oddities`: what was missing, late or absurd, by name.
"""
