"""A small order and chat service: ``aperion replay examples/shop/events.jsonl --app examples.shop.service:app``."""
