"""The version of NexMDM, for the package and the OpenAPI document."""

VERSION = "0.1.0"
