"""The same service on the web: an endpoint that takes orders, for whoever is logged in."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException

from aperion.integrations.fastapi import BusDep, lifespan
from examples.tested import service
from examples.tested.service import OrderPlaced


def email_of_user(authorization: Annotated[str | None, Header()] = None) -> str:
    """Return who is logged in; a real one would look at the token."""
    if authorization is None:
        raise HTTPException(401, "log in first")
    return "somebody@example.com"


app = FastAPI(lifespan=lifespan(service.app))


@app.post("/orders/{order_id}", status_code=202)
async def place_order(order_id: str, bus: BusDep, email: Annotated[str, Depends(email_of_user)]) -> str:
    """Take an order; handlers do the rest."""
    receipt = await bus.emit(OrderPlaced(order_id=order_id, email=email))
    return receipt.event_id
