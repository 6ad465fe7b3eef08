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
# # 6. Launch
#
# May the launch go ahead? The model's gates, the capacity for the expected traffic, load tests on a
# real fleet, and a drill in which a region dies: one verdict, each line with its evidence. A line is
# a go only where it was shown. `python -m loadtests launch` does the same from the command line.

# %% tags=["parameters"]
file = ""  # what has to hold (launch.yaml); empty: the example, a fleet of three small regions
drill = ""  # drill.json of an earlier `python -m loadtests run`; empty: the tests run now, in about five minutes
run = ""  # run folder of the pipeline whose gates count; empty: as the file says
run_folder = "runs/notebook"  # results go to its folder 06_launch

# %%
import json
from pathlib import Path

from laboratory.charts import picture
from loadtests.launch.plots import scenarios_figure
from loadtests.launch.run import Check, check
from pipeline.runs.display import show_rows
from pipeline.runs.results import Row, StageFolder
from pipeline.runs.settings import NOTEBOOKS

stage = StageFolder(run_folder, "06_launch", "Launch")
found = check(
    Check(
        file=Path(file or NOTEBOOKS.parent / "docs" / "examples" / "launch.yaml"),
        out=stage.path,
        run=Path(run) if run else None,
        drill=Path(drill) if drill else None,
    )
)
print(f"{found['name']}: {found['verdict'].upper()}")
for reason in found["reasons"]:
    print(f"because {reason}")

# %% [markdown]
# ## What has to hold, and what was found

# %%
for line in found["lines"]:
    stage.row(line["claim"], line["mark"], note=line["found"], headline=line["mark"] != "go")
show_rows([Row(name=f"{one['area']}: {one['claim']}", value=one["mark"], note=one["found"]) for one in found["lines"]])

# %% [markdown]
# ## The load tests
#
# Requests by the time at which they were due: blue at home, orange in another region, red not at all.

# %%
tested = Path(drill).parent if drill else stage.path / "drill"
results = {
    path.parent.name: json.loads(path.read_text())
    for path in sorted(tested.glob("*/verdict.json"), key=lambda path: path.stat().st_mtime)
}
if results:
    shares = picture(scenarios_figure(results))
    stage.picture("scenarios", "Load tests", "Requests per second, by where they were served", shares)
else:
    shares = "no results beside the drill's"
shares

# %%
result = stage.finish(
    f"{found['verdict'].upper()}: {found['name']}" + (f", because {found['reasons'][0]}" if found["reasons"] else "."),
    {"launch": found},
)
