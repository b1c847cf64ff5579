"""The engine: a driver that proposes, evaluates and stores trials as the only writer, and workers that evaluate them."""
