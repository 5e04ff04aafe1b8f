"""What happens in the shop: the events, and what each of them carries."""

from typing import Annotated

from pydantic import PositiveInt

from aperion import Payload, Sensitive


class OrderPlaced(Payload, type="order.placed"):
    """A customer ordered something."""

    order_id: str
    customer: str
    email: Annotated[str, Sensitive("email")]  # handlers see it, the audit log does not
    items: list[str]
    total_cents: PositiveInt


class OrderPaid(Payload, type="order.paid"):
    """Money arrived, or so the customer says."""

    order_id: str
    amount_cents: PositiveInt
    card_number: Annotated[str, Sensitive("card")]


class OrderShipped(Payload, type="order.shipped"):
    """The parcel left the house."""

    order_id: str
    carrier: str


class OrderCancelled(Payload, type="order.cancelled"):
    """The customer changed their mind."""

    order_id: str
    reason: str


class InvoiceCreated(Payload, type="invoice.created"):
    """The follow-up of ``order.placed``."""

    order_id: str
    total_cents: PositiveInt


class ChatMessageSent(Payload, type="chat.message.sent"):
    """Somebody wrote something in a room."""

    room: str
    author: str
    text: str
