"""A driver as a program, for tests that kill it: FOLDER LOG TRIALS PHASE_S [recheck] [rungs] [kill_driver] [pool]; prints the final state.

It imports what it needs late, as `archsearch` does: the worker imports its driver's main module.
"""

import sys


def _main(folder: str, log: str, trials: str, phase_s: str, *words: str) -> None:
    from pathlib import Path

    from support.runs import make_config, make_rung_config, run

    from archsearch.search import Pool, ProcessWorker
    from archsearch.search.engine.workers.process import wait_for_processes

    make = make_rung_config if "rungs" in words else make_config
    config = make(Path(log), settings={"phase_s": float(phase_s)})
    evaluator = "kill_driver" if "kill_driver" in words else "evaluate"
    worker = None
    if "pool" in words:
        log_file = Path(folder).with_name("worker.log")
        two = [ProcessWorker(log_file, f"support.stub_evaluators:{evaluator}", name=f"cpu {place}") for place in "01"]
        worker = Pool(two, wait_for_processes)
    recheck = "recheck" in words
    print(run(Path(folder), config, int(trials), evaluator=evaluator, recheck=recheck, worker=worker).state)


if __name__ == "__main__":
    _main(*sys.argv[1:])
