# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Capacity
#
# How many GPUs does each region need on launch day? Traffic of the past says when and where requests
# come, a benchmark says how long a GPU is busy with one, and a goal says what users are to get. This
# notebook turns the three into GPUs per region and their cost, shows what the plan rests on, and what
# it would be if that were otherwise. `python -m routing capacity` does the same from the command line.

# %% tags=["parameters"]
traffic = ""  # history, CSV or Parquet with time, region and requests; empty: the generated example
fleet = ""  # regions, distances, thresholds, retries; empty: the example
service_time = ""  # benchmark as JSON; empty: what this run measured in 02_optimize, else the one of the repository
planning = ""  # growth, launches, goal, margin, prices; empty: the example
sensitivity = True  # also find what the plan depends on
run_folder = "runs/notebook"  # results go to its folder 05_capacity

# %%
import json
from pathlib import Path

from laboratory.capacity.planning import load_planning
from laboratory.capacity.plots import gpus_figure, sensitivity_figure, week_figure
from laboratory.capacity.report import plan_capacity, results
from laboratory.charts import picture
from pipeline.runs.display import show_rows
from pipeline.runs.results import Row, StageFolder
from pipeline.runs.settings import NOTEBOOKS
from routing.fleet import load_fleet

stage = StageFolder(run_folder, "05_capacity", "Capacity")
examples = NOTEBOOKS.parent / "docs" / "examples"
history_path = Path(traffic or examples / "generated-traffic.csv")
known_fleet = load_fleet(fleet or examples / "fleet.yaml")
wanted = load_planning(Path(planning or examples / "capacity.yaml"), known_fleet)
bench_path = Path(service_time or NOTEBOOKS.parent / "benchmarks" / "cpu" / "ladder" / "bench.json")
if not service_time and (measured := stage.read("02_optimize", "bench")):
    bench_path = stage.path / "bench.json"
    bench_path.write_text(json.dumps(measured))
print(f"{history_path.name}, {bench_path.name}; planned for: {wanted.name}")

# %% [markdown]
# ## The plan
#
# Each region gets the fewest GPUs at which few enough requests of its busiest hour find none free
# (Erlang's formula), and at which it stays below its threshold, so that its traffic stays at home.
# Then the loss of any one region is looked at, hour by hour of the week: the planner of the routing
# has to find room for all of its traffic. Regions whose evenings are at different hours carry each
# other, so this costs far less than a second fleet.

# %%
plan = plan_capacity(history_path, known_fleet, bench_path, wanted, sensitivity=sensitivity)
found = results(plan)
total = found["total"]
stage.row("GPUs", total["gpus"], note=f"{total['gpus_now']} in the fleet file", headline=True)
stage.row("For own peaks alone", total["gpus_alone"], "GPUs", "none of them for the loss of a region")
stage.row("With a standby for each region", total["gpus_with_a_standby_each"], "GPUs", "without routing between them")
stage.row("Cost", total["cost_per_month"], f"{total['currency']} a month", headline=True)
stage.row("Service time", total["service_time_s"], "s", plan.times.text)
show_rows(stage.result.rows)

# %%
show_rows(
    [
        Row(
            name=name,
            value=one["gpus"],
            unit="GPUs",
            note=(
                f"{one['gpus_alone']} for its peak of {one['peak_rps']:.1f} a second ({one['peak_at']}), "
                f"{one['gpus_in_service'] - one['gpus_alone']} for the loss of another region, "
                f"{one['gpus'] - one['gpus_in_service']} as a margin; {100 * one['blocking']:.2f} % wait at the peak, "
                f"{100 * one['blocking_in_loss']:.2f} % at worst with a region lost"
            ),
        )
        for name, one in found["regions"].items()
    ]
)

# %% [markdown]
# ## The week
#
# Grey is the history, blue what is planned for: growth, launches, and the highest minute of an hour.

# %%
week = picture(week_figure(plan))
stage.picture("week", "Demand and capacity", "Requests per second by hour of the week (UTC)", week)
week

# %%
gpus = picture(gpus_figure(plan))
stage.picture("gpus", "GPUs by region", "What they are for, and what the fleet file has", gpus)
gpus

# %% [markdown]
# ## What it depends on
#
# GPUs grow with the service time: what makes a request faster is worth its part of the fleet. Retries
# do not make GPUs: within the plan hardly anyone needs one, and far beyond it they only wait.

# %%
if sensitivity:
    depends = picture(sensitivity_figure(plan))
    stage.picture("sensitivity", "What the plan depends on", "GPUs by service time; failures, simulated", depends)
else:
    depends = "not asked for"
depends

# %% [markdown]
# ## What it rests on

# %%
for text in found["repairs"]:
    print(f"mended: {text}")
for text in found["assumptions"]:
    print(f"assumed: {text}")

# %%
result = stage.finish(
    f"{total['gpus']} GPUs carry {wanted.name}" + (", with any one region lost." if found["loss"] else "."),
    {"capacity": found},
)
