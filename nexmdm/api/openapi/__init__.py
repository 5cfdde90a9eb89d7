"""The published OpenAPI document: its description, components and examples."""
