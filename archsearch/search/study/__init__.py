"""The storage of a run: one Optuna study in a database, and the rows of trials.parquet made from it."""
