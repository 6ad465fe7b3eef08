"""How many GPUs each region needs: traffic of the past, a benchmark and a goal in, GPUs and their cost out.

- `history`: requests by time and region, as files have them, with what was mended; `week`: the week to plan for.
- `settings`: growth, launches, goal, margin, prices, as a file has them.
- `sizing`: GPUs by the blocking formula, and by what the routing can carry when a region is lost.
- `sensitivity`: what service time and retries change, the latter on the simulator.
- `report`, `plots`: what came of it.
"""
