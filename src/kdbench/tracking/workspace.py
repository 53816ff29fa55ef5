"""The W&B workspace and report of the benchmark, as code."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from kdbench.records.contents import Record
from kdbench.tracking.sending import LEDGER
from kdbench.tracking.wandb_facts import pair_of

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import BarPlot, LinePlot, Report, ScatterPlot
    from wandb_workspaces.workspaces import Workspace

    Panel: TypeAlias = "BarPlot | LinePlot | ScatterPlot"

COLUMNS = ("top1_last", "top1_best_on_test", "top1_last5", "ece_last", "seconds_share")


def result_panels() -> "list[Panel]":
    """Make panels of scores and costs by method, with the standard deviation over seeds."""
    import wandb_workspaces.reports.v2 as wr

    bars = {"groupby": wr.Config("method.name"), "groupby_aggfunc": "mean"}
    spread = {**bars, "groupby_rangefunc": "stddev"}
    last = wr.SummaryMetric("top1_last")
    return [
        wr.BarPlot(title="top-1, last epoch", metrics=[last], **spread),
        wr.LinePlot(
            title="test top-1",
            x="epoch",
            y=["test/top1"],
            groupby="Group",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        ),
        wr.ScatterPlot(title="top-1 over seconds", x=wr.SummaryMetric("seconds_share"), y=last),
        wr.BarPlot(
            title="expected calibration error", metrics=[wr.SummaryMetric("ece_last")], **spread
        ),
    ]


def training_panels() -> "list[Panel]":
    """Make panels of training curves."""
    import wandb_workspaces.reports.v2 as wr

    keys = ("train/loss", "train/top1", "test/loss", "lr", "seconds")
    return [wr.LinePlot(title=key, x="epoch", y=[key]) for key in keys]


def workspace(entity: str, project: str) -> "Workspace":
    """Make the project's workspace: all runs by protocol, pair and method."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name="kdbench",
        sections=[
            ws.Section(name="Results", panels=result_panels(), is_open=True),
            ws.Section(name="Training", panels=training_panels()),
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch"),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("JobType") != LEDGER],
            groupby=[ws.Config("protocol"), ws.Config("pair"), ws.Config("method.name")],
            order=[ws.Ordering(ws.Summary("top1_last"), ascending=False)],
            pinned_columns=[f"summary:{name}" for name in COLUMNS],
        ),
    )


def report(entity: str, project: str, pairs: Sequence[tuple[str, str]]) -> "Report":
    """Make the project's report: the ledger, then each pair under each protocol.

    Args:
        entity: the W&B user or team.
        project: the W&B project.
        pairs: the pair and protocol of each section.
    """
    import wandb_workspaces.reports.v2 as wr

    def grid(name: str, filters: str, panels: "Sequence[Panel]") -> wr.PanelGrid:
        runs = wr.Runset(entity=entity, project=project, name=name, filters=filters)
        return wr.PanelGrid(runsets=[runs], panels=panels)

    blocks = [
        wr.H1("Ledger"),
        wr.P("One row a cell, from records alone. Top-1 is the last epoch's, in percent."),
        grid(
            LEDGER,
            f"Metric('JobType') = '{LEDGER}'",
            [wr.WeavePanelSummaryTable(table_name=LEDGER)],
        ),
    ]
    for pair, protocol in pairs:
        filters = f"Config('pair') = {quoted(pair)} and Config('protocol') = {quoted(protocol)}"
        blocks += [wr.H2(f"{pair}, {protocol}"), grid(pair, filters, result_panels())]
    return wr.Report(entity=entity, project=project, title="kdbench", blocks=blocks)


def quoted(text: str) -> str:
    """Return text for a filter, with signs such as = encoded, since W&B rewrites them anywhere."""
    plain = (c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text)
    return f"'{''.join(plain)}'"


def pairs_of(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Return the pairs and protocols of records, each once, in order."""
    return sorted({(pair_of(record.config), record.protocol) for record in records})
