"""The OpenAPI document: its description, its components and its examples."""
