"""The command line. Nothing but click and the standard library is imported before a command runs, so that `--help` is instant."""

from archsearch.cli.app import main
from archsearch.cli.audit import audit
from archsearch.cli.bench import bench
from archsearch.cli.calibrate import calibrate
from archsearch.cli.docs import docs
from archsearch.cli.doctor import doctor
from archsearch.cli.evaluate import evaluate
from archsearch.cli.export import export
from archsearch.cli.inspect import blocks, cost, papers, proxies, sample, space
from archsearch.cli.prepare import prepare
from archsearch.cli.report import report
from archsearch.cli.run import run
from archsearch.cli.runs import runs
from archsearch.cli.score import score
from archsearch.cli.train import train

__all__ = ["main"]

for command in (
    run,
    report,
    runs,
    prepare,
    audit,
    bench,
    calibrate,
    train,
    evaluate,
    export,
    cost,
    score,
    sample,
    space,
    blocks,
    papers,
    proxies,
    docs,
    doctor,
):
    main.add_command(command)
