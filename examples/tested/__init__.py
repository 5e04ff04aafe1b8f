"""A small service and its tests, written with what ``aperion.testing`` brings: ``pytest examples/tested``."""
