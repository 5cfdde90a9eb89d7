"""Reading of events: the event feed, its cursors and its epochs."""
