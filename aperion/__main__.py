"""``python -m aperion`` is the ``aperion`` command, for when that is not on the path."""

from aperion.cli.main import main

if __name__ == "__main__":
    main()
