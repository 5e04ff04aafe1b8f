"""``python -m aperion.cli`` is the ``aperion`` command too, as ``python -m aperion`` is."""

from aperion.cli.main import main

if __name__ == "__main__":
    main()
