"""``glance-fast experiment``: a module an experiment."""

from __future__ import annotations

import typer

from glance_fast.cli.experiment.categories import categories
from glance_fast.cli.experiment.cifar10 import cifar10
from glance_fast.cli.experiment.features import features
from glance_fast.cli.experiment.lambda_s import lambda_
from glance_fast.cli.experiment.panel import panel
from glance_fast.cli.experiment.scales import scales
from glance_fast.cli.experiment.self_supervised import self_supervised
from glance_fast.cli.group import Commands

experiment = typer.Typer(
    cls=Commands,
    help="""Run the paper's tables and figures on your data.

Each writes a folder: experiment.json, results.csv, pictures. The paper's
figures are shown beside those measured, where it has them. Ctrl-C loses no
finished row; the same command with --resume goes on, where it has that.""",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

for command in (categories, cifar10, features, lambda_, panel, scales, self_supervised):
    experiment.command(command.__name__.strip("_").replace("_", "-"))(command)
