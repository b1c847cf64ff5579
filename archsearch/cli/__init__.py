"""The command line. Nothing but click and the standard library is imported before a command runs, so that `--help` is instant."""

from archsearch.cli.app import main
from archsearch.cli.bench import bench
from archsearch.cli.calibrate import calibrate
from archsearch.cli.evaluate import evaluate
from archsearch.cli.inspect import blocks, cost, papers, proxies, sample, space
from archsearch.cli.report import report
from archsearch.cli.run import run

__all__ = ["main"]

for command in (run, report, cost, bench, calibrate, evaluate, sample, space, blocks, papers, proxies):
    main.add_command(command)
