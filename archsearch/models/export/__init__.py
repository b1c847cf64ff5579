"""Networks written to files, of which ONNX and torch.export run without archsearch, each checked against the network before it takes its place."""
