"""The API as a whole: OpenAPI, examples, health, query budget."""
