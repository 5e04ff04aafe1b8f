"""What there is in an application: types of events, who emits them, who handles them, and why."""

from aperion.catalogue.asyncapi import asyncapi
from aperion.catalogue.contents import Catalogue, EventType, Field, Handled, Reaction, catalogue
from aperion.catalogue.explaining import Explanation, Miss, explain
from aperion.catalogue.mermaid import mermaid
from aperion.catalogue.places import Place
from aperion.catalogue.seen import Emitters, emitters_in

__all__ = [
    "Catalogue",
    "Emitters",
    "EventType",
    "Explanation",
    "Field",
    "Handled",
    "Miss",
    "Place",
    "Reaction",
    "asyncapi",
    "catalogue",
    "emitters_in",
    "explain",
    "mermaid",
]
