"""What there is in an application: who emits, who handles, what is left over.

Prints:
    order.placed is handled by follow_order, reserve_stock, write_invoice, count
    invoice.created is emitted by write_invoice
    handled by nobody in particular: invoice.created, shop.minute.passed
    order.plaecd? there is order.placed
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the shop lies beside this file

from aperion.catalogue import catalogue, emitters_in, explain
from examples.shop import service

contents = catalogue(service.bus, "shop", emitters=emitters_in([service]))
types = {each.name: each for each in contents.types}

handlers = [handler.subscription.rpartition(".")[2] for handler in types["order.placed"].handlers]
print(f"order.placed is handled by {', '.join(handlers)}")
print(f"invoice.created is emitted by {types['invoice.created'].emitters[0].function}")
print(f"handled by nobody in particular: {', '.join(contents.unhandled)}")
print(f"order.plaecd? there is {explain(service.bus, 'order.plaecd').near[0]}")
