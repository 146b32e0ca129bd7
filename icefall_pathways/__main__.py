"""`python -m icefall_pathways` is `icefall-pathways`."""

from icefall_pathways.cli import main

if __name__ == "__main__":
    main()
