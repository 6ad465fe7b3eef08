"""What tries a fleet out before it is run, and while it is changed. Production needs none of it, and `routing` imports
none of it, but for the command line, which has the commands where this package is installed.

- `local`: a fleet on this machine, of real proxies, a real control loop and stand-ins for GPU servers.
- `experiment`: lines and retries on such a fleet, beside what queueing theory allows.
- `simulate`: a fleet of any size, event by event, with the real control loop in it.
- `capacity`: GPUs for each region, from past traffic and a goal; `queueing` has the formulas.
- `tune`: policies that meet a goal, searched for on the simulator.
- `service_times`: how long jobs take; `planning`: how far plans are from the optimum.
- `commands`: those of `python -m routing` that are about all this.
"""
