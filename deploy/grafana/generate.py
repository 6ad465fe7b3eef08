"""Writes `dashboards/*.json` from `boards.yaml`: `python deploy/grafana/generate.py`.

The builders of Grafana's SDK know which fields there are. What they make is kept, so that an operator needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders import common as builders
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

HERE = Path(__file__).parent
_WIDTH, _HEIGHT = 24, 8
_MAKERS = {"lines": timeseries.Panel, "number": stat.Panel, "table": table.Panel}
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${source}")


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title, about: what it shows, and what to think of it.
        queries: PromQL, by the name of its lines.
        unit: as Grafana names it.
        kind: lines, number or table.
        most: end of the vertical axis; None: what it takes.
        warn: a value above it is marked.
    """

    title: str
    about: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "lines"
    most: float | None = None
    warn: float | None = None


def main() -> None:
    """Write all of them."""
    for name, text in dashboards().items():
        (HERE / "dashboards" / f"{name}.json").write_text(text, encoding="utf-8")


def dashboards() -> dict[str, str]:
    """Text of each dashboard, by name."""
    boards = yaml.safe_load((HERE / "boards.yaml").read_text(encoding="utf-8"))
    return {name: _dashboard(name, board) for name, board in boards.items()}


def _dashboard(name: str, board: Mapping[str, Any]) -> str:
    regions = dashboard.QueryVariable("region").label("Region").query("label_values(up, region)").datasource(_SOURCE)
    regions = (
        regions.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".+")
    )
    others = dashboard.DashboardLink("stillmotion").type(models.DashboardLinkType.DASHBOARDS).tags(["stillmotion"])
    found = dashboard.Dashboard(board["title"]).uid(f"stillmotion-{name}").description(board["about"])
    found = found.tags(["stillmotion"]).refresh("30s").time("now-3h", "now").timezone("browser")
    found = found.tooltip(models.DashboardCursorSync.CROSSHAIR).link(
        others.keep_time(keep_time=True).include_vars(include_vars=True)
    )
    found = found.with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
    found = found.with_variable(regions)
    for row in board["rows"]:
        found = found.with_row(dashboard.Row(row["title"]))
        for panel in row["panels"]:
            found = found.with_panel(_panel(Panel(**panel), _WIDTH // len(row["panels"])))
    return json.dumps(found.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _panel(panel: Panel, width: int) -> Any:
    made = _MAKERS[panel.kind]().title(panel.title).description(panel.about).datasource(_SOURCE)
    made = made.span(width).height(_HEIGHT).unit(panel.unit).min(0)
    if panel.most is not None:
        made = made.max(panel.most)
    if panel.warn is not None:
        steps = [models.Threshold(color="green", value=None), models.Threshold(color="orange", value=panel.warn)]
        made = made.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.kind == "lines":
        made = made.fill_opacity(8).line_width(2).show_points(common.VisibilityMode.NEVER)
        if panel.warn is not None:
            style = builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
            made = made.thresholds_style(style)
    for query in _queries(panel):
        made = made.with_target(query)
    return made


def _queries(panel: Panel) -> Iterator[Any]:
    for number, (legend, expression) in enumerate(panel.queries.items()):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
        yield query.instant().format("table") if panel.kind == "table" else query.range()


if __name__ == "__main__":
    main()
