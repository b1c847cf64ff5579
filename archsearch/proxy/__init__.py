"""Proxy tasks: profiles, the small copies that are trained, their training and its score, training-free scores, and audits of how well they order."""
