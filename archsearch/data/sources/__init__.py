"""Sources of labelled images: one class for each form of a data set, all with the interface `base.Source`; `detect.open_source` picks it."""
