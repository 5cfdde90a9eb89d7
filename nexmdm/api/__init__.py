"""The API: its application object, its error table, and the endpoints that serve the whole fleet."""
