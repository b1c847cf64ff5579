"""A run as one HTML file that needs no network: `write_page` writes it, the static parts stand beside this file."""
