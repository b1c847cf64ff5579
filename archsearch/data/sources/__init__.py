"""Where images come from: each form of a data set behind the contract of `base.Source`; `detect.open_source` tells them apart."""
