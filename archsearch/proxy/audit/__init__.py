"""How well a proxy orders architectures: what was trained to find out, what it comes to, and the sentence it is told in."""
