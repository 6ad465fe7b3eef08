"""How many GPUs each region needs: traffic of the past, a benchmark and a goal in, GPUs and their cost out.

- `history`: requests by time and region, as files have them, with what was mended.
- `planning`: growth, launches, goal, margin, prices, as a file has them, and the week to plan for.
- `sizing`: GPUs by the blocking formula, and by what the routing can carry when a region is lost.
- `report`: what came of it, and what service time and retries change; `plots`: pictures of it.
"""
