"""Commands: the action catalogue, the queue, deliveries, reports; what phones and admins call about them."""
