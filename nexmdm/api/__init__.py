"""The API as a whole: the NinjaAPI object, the table of errors, health, the fleet's summary."""
