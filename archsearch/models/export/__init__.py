"""Networks written to files that run without archsearch, each checked against the network before it takes its place."""
