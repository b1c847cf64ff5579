"""`python -m archsearch`: the same as the `archsearch` command."""

from archsearch.cli import main

if __name__ == "__main__":
    main(prog_name="archsearch")
