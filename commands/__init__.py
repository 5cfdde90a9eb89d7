"""Commands: the action catalogue, the queue, deliveries, reports, and the endpoints for them."""
