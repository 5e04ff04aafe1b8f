"""``python -m aperion.cli`` is the ``aperion`` command."""

from aperion.cli.main import main

if __name__ == "__main__":
    main()
