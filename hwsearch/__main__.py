"""`python -m hwsearch`."""

from hwsearch.cli import main

if __name__ == "__main__":
    main()
