"""A driver as a program, for tests that kill it: FOLDER LOG TRIALS PHASE_S [recheck] [rungs] [kill_driver] [workers=N]; prints the final state.

It imports what it needs late, as `archsearch` does: the worker imports its driver's main module.
"""

import sys


def _main(folder: str, log: str, trials: str, phase_s: str, *words: str) -> None:
    from pathlib import Path

    from support.runs import make_config, make_pool, make_rung_config, run

    make = make_rung_config if "rungs" in words else make_config
    config = make(Path(log), settings={"phase_s": float(phase_s)})
    evaluator = "kill_driver" if "kill_driver" in words else "evaluate"
    workers = next(
        (make_pool(Path(folder), int(word[8:]), evaluator) for word in words if word[:8] == "workers="), None
    )
    found = run(Path(folder), config, int(trials), evaluator=evaluator, recheck="recheck" in words, worker=workers)
    print(found.state)


if __name__ == "__main__":
    _main(*sys.argv[1:])
