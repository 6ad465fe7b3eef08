"""The experiment: lines and retries on real proxies, beside what queueing theory allows.

- `cases`: the fleets that are compared.
- `measure`: runs the fleets and counts; `results` makes the table, the plot and the JSON.
"""
